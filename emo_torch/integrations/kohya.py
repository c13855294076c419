"""kohya's sd-scripts: a name for the one member that they would take for another kind of optimizer."""

from emo_torch._members.ref_adamw_mini_schedule_free import RefAdamWMiniScheduleFree

__all__ = ["RefAdamWMini"]

RefAdamWMini = RefAdamWMiniScheduleFree
"""`--optimizer_type emo_torch.integrations.kohya.RefAdamWMini`: they send names that end in
"schedulefree" to another library, and call `train()` and `eval()` of what they get."""
