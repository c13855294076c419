"""The options of a member, said once: in the signature of its `__init__`."""

from typing import Any

NOT_OPTIONS = frozenset({"self", "__class__", "params", "process_group"})
"""Arguments of a member that are not options of a parameter group."""


def options_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the options among the arguments of an `__init__`.

    Args:
        arguments: the result of `locals()` in the first statement of the `__init__`.

    Returns:
        A new dictionary of the arguments that are options of a parameter group, by name.

    Example:
        >>> from emo_torch._members.options import options_of
        >>> def init(self, params, lr=1e-3, *, theta=1e-4, process_group=None):
        ...     return options_of(locals())
        >>> init(None, [])
        {'lr': 0.001, 'theta': 0.0001}
    """
    return {name: value for name, value in arguments.items() if name not in NOT_OPTIONS}
