import subprocess
import sys

import pytest

CODE = """
import sys, torch
disable = torch.compiler.disable
from raydistal.detector import zoo
from raydistal.features import backbones
assert torch.compiler.disable is disable
assert not {"torch._dynamo", "torch._dynamo.utils", "sympy"} & set(sys.modules)
network = zoo.Detector("timm:test_resnet", 32).eval()
crops_NHWC = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
with torch.inference_mode():
    expected = network(crops_NHWC)
    assert "torch._dynamo" not in sys.modules
    assert torch.equal(torch.compile(network, backend="eager")(crops_NHWC), expected)
assert torch._dynamo.utils.is_compile_supported("cpu")
"""


@pytest.mark.slow
def test_networks_need_no_compiler_and_can_be_compiled():
    subprocess.run([sys.executable, "-c", CODE], check=True)
    subprocess.run([sys.executable, "-c", "import torch._dynamo; from raydistal.detector import zoo"], check=True)
