"""The options of a member, said once: in the signature of its function."""

from typing import Any

OF_THE_RULE = frozenset({"b1", "b2", "eps", "moment_dtype"})
"""Arguments of a member that its rule takes, and not `emotional_rule`."""


def options_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the options for `emotional_rule` among the arguments of a member's function.

    Args:
        arguments: the result of `locals()` in the first statement of the function.

    Returns:
        A new dictionary of the arguments that the rule does not take, by name.

    Example:
        >>> from emo_optax._members.options import options_of
        >>> def member(learning_rate=1e-3, b1=0.9, *, gain=5.0):
        ...     return options_of(locals())
        >>> member()
        {'learning_rate': 0.001, 'gain': 5.0}
    """
    return {name: value for name, value in arguments.items() if name not in OF_THE_RULE}
