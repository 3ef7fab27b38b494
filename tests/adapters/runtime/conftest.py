"""An engine on the tiny decoder, with bundles of different task, rank, width and modules; and the compiled kernels."""

import platform

import pytest

from adapters.backbone import load_backbone
from adapters.runtime import compiling
from adapters.runtime.engine import Engine
from adapters.runtime.kernels import load_kernels
from tests.bundles import answerer, classifier, save_bundle, summarizer
from tests.homes import share_finds

PORTABLE = {"x86_64": "-march=x86-64-v3", "aarch64": "-march=armv8-a"}
NARROW = "-DLANES=4"  # the shortest vectors that the kernels know


@pytest.fixture(scope="session", params=["native", "portable", "narrow"])
def kernels(request, tmp_path_factory):
    """The kernels as this processor runs them, and as older ones would."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "native":
            flags = [f for f in compiling._FLAGS if f != "-march=native"]
            own = PORTABLE.get(platform.machine(), "-O3")
            narrow = [NARROW] if request.param == "narrow" else []
            patch.setattr(compiling, "_FLAGS", (*flags, own, *narrow))
        home = tmp_path_factory.mktemp("home")
        share_finds(home)
        loaded = load_kernels.__wrapped__(home)
    if loaded is None:
        pytest.skip("no C compiler on this machine")
    return loaded


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, decoder_spec):
    """Bundles of different task, rank, width and modules, by name."""
    root = tmp_path_factory.mktemp("bundles")
    backbone = load_backbone(decoder_spec, "float32")
    made = {
        "two": (classifier(2), {"rank": 4}),
        "many": (classifier(77), {"rank": 8, "target_modules": ["q_proj", "v_proj"]}),
        "spans": (answerer(), {"rank": 16, "last_layers": 1}),
        "summary": (summarizer(), {"rank": 3}),
        "other": (classifier(2), {"rank": 4}),
    }
    for seed, (name, (task, lora)) in enumerate(made.items()):
        save_bundle(root / name, decoder_spec, task, seed=seed, backbone=backbone, **lora)
    return root


@pytest.fixture(params=["torch", "kernels", "fused"])
def engine(request, decoder_spec, bundles):
    """The engine on torch alone, with compiled kernels, and as a server runs it: linear layers fused as well."""
    backbone = load_backbone(decoder_spec, "float32", fuse=request.param == "fused")
    engine = Engine(backbone, lambda name: bundles / name, use_kernels=request.param != "torch")
    yield engine
    engine.close()
