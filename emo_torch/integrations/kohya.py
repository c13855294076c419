"""kohya's sd-scripts: another name for the member whose own name the scripts would misunderstand."""

from emo_torch._members.ref_adamw_mini_schedule_free import RefAdamWMiniScheduleFree

__all__ = ["RefAdamWMini"]

RefAdamWMini = RefAdamWMiniScheduleFree
"""`--optimizer_type emo_torch.integrations.kohya.RefAdamWMini`: the scripts look up names that end in
"schedulefree" in another library, and call `train()` and `eval()` of such an optimizer."""
