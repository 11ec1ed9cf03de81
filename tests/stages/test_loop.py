"""What the two training stages share: the device's support of bfloat16."""

import pytest
import torch

from nested_reft.config.sections import Sft, Training
from nested_reft.errors import UserError
from nested_reft.stages import loop


@pytest.mark.parametrize(("settings", "section"), [(Sft(bf16=True), "sft"), (Training(bf16=True), "training")])
@pytest.mark.parametrize(
    ("has_gpu", "device"), [(True, "this GPU"), (False, "the CPU with this build of torch")], ids=["gpu", "cpu"]
)
def test_bf16_is_refused_by_name_where_the_device_lacks_it(settings, section, has_gpu, device, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_gpu)
    monkeypatch.setattr(loop, "is_torch_bf16_gpu_available", lambda: not has_gpu)
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device_type: has_gpu)
    loop.check_bf16(settings.model_copy(update={"bf16": False}), section)
    with pytest.raises(UserError) as refusal:
        loop.check_bf16(settings, section)
    assert str(refusal.value) == (
        f"{section}.bf16 is true, but {device} cannot compute in bfloat16; set {section}.bf16 to false"
    )
