"""A compiled network is used only when it is faster and gives the plain network's gradients; else nothing changes."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from conftest import write_pipeline
from learn_doubles import begin, load_named

torch: Any = pytest.importorskip("torch")

from celebctl.method import compiled as compiled_module  # noqa: E402
from celebctl.method.compiled import compiled, disagreement, upsamplers_left_out  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

GRADIENT = torch.tensor([[1.0, -2.0, 3.0]])


def network() -> Any:
    """One with a part that is called like diffusers' own."""
    made = torch.nn.Module()
    made.linear = torch.nn.Linear(2, 2)
    made.up = type("Upsample2D", (torch.nn.Identity,), {})()
    return made


class Step:
    """A step whose gradient through anything but the plain network is ``other``, ``seconds`` later."""

    def __init__(self, plain: Any, other: Any, seconds: float = 0.0, plain_seconds: float = 0.01) -> None:
        self.plain, self.other, self.seconds, self.plain_seconds = plain, other, seconds, plain_seconds

    def gradient(self, network: Any) -> Any:
        time.sleep(self.plain_seconds if network is self.plain else self.seconds)
        if isinstance(self.other, Exception) and network is not self.plain:
            raise self.other
        return GRADIENT if network is self.plain else self.other


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Any:
    def compile_network(unet: Any) -> Any:
        return SimpleNamespace(of=unet)

    monkeypatch.setattr(compiled_module, "compile_network", compile_network)
    return network()


def outcome(net: Any, step: Step) -> tuple[Any, str]:
    told: list[str] = []
    with compiled(net, step, told.append) as chosen:
        pass
    assert len(told) == 1 and "\n" not in told[0]
    return chosen, told[0]


def test_a_faster_network_with_the_same_gradients_is_used(net: Any) -> None:
    chosen, told = outcome(net, Step(net, GRADIENT * 1.02 + 0.01))
    assert chosen.of is net and "times as fast" in told


@pytest.mark.parametrize(
    ("other", "seconds", "why"),
    [
        (torch.zeros(1, 3), 0.0, "cosine 0.000"),
        (-GRADIENT, 0.0, "cosine -1.000"),
        (GRADIENT / 2, 0.0, "length 0.50"),
        (GRADIENT * float("nan"), 0.0, "do not agree"),
        (RuntimeError("no C++ compiler\nand much more"), 0.0, "no C++ compiler"),
        (GRADIENT, 0.03, "a plain one"),
    ],
    ids=["zero", "opposite", "short", "nan", "failed", "slower"],
)
def test_else_learning_goes_on_as_it_was(net: Any, other: Any, seconds: float, why: str) -> None:
    chosen, told = outcome(net, Step(net, other, seconds))
    assert chosen is net and told.startswith("learning goes on uncompiled") and why in told


def test_upsamplers_are_left_out_and_given_back() -> None:
    net = network()
    with pytest.raises(KeyboardInterrupt), upsamplers_left_out(net):
        assert "forward" in vars(net.up) and torch.equal(net.up(torch.ones(2)), torch.ones(2))
        raise KeyboardInterrupt
    assert "forward" not in vars(net.up)


def test_rounding_is_no_disagreement_and_a_lost_part_is_one() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(2, 512, generator=generator)
    noise = torch.randn(2, 512, generator=generator)
    assert disagreement(plain, plain + 0.03 * noise) is None
    lost = plain.clone()
    lost[:, 300:] = 0
    assert disagreement(plain, lost) is not None


def test_a_compiled_step_gives_the_gradient_of_the_plain_one_and_moves_nothing_on(tmp_path: Path) -> None:
    """The whole way on a small model, with dynamo and its gradients but without a C++ compiler ("aot_eager")."""
    pytest.importorskip("insightface")
    write_pipeline(tmp_path / "tiny", "epsilon")
    parts = load_named(tmp_path / "tiny")
    sitting, other = begin(parts), begin(parts)
    torch._dynamo.reset()
    with upsamplers_left_out(parts.unet):
        network = torch.compile(parts.unet, backend="aot_eager", dynamic=False)
        plain, found = sitting.gradient(parts.unet), sitting.gradient(network)
    assert float(plain.norm()) > 0 and disagreement(plain, found) is None
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))
    assert sitting.advance() == other.advance(), "asking for gradients moved nothing on"
    sitting.network = network
    assert sitting.advance() == pytest.approx(other.advance(), rel=1e-3)


def test_people_learned_with_compiling_are_the_same_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from celebctl.method import build_basis, learn_people
    from celebctl.method.config import CLEAN
    from celebctl_models.faces import InsightFaceAnalyser
    from celebctl_models.mini.world import draw_portrait
    from celebctl_models.registry import card_for, locate

    def compile_network(unet: Any) -> Any:
        return torch.compile(unet, backend="aot_eager", dynamic=False)

    monkeypatch.setattr(compiled_module, "compile_network", compile_network)
    write_pipeline(tmp_path / "tiny", "epsilon")
    parts, folder = load_named(tmp_path / "tiny"), card_for(locate("mini").path).faces_dir
    assert folder is not None
    config, told = replace(CLEAN, steps=2, views=2), list[str]()
    given = (parts, InsightFaceAnalyser(folder), [draw_portrait(3, 128)], ["ann"], config)
    options: dict[str, Any] = {"basis": build_basis(parts), "tell": told.append}
    (plain,) = learn_people(*given, **options)
    assert len(told) == 1 and "basis build --faces" in told[0], "where this model draws faces, nobody measured"
    (one,) = learn_people(*given, **options, compiling=True)
    assert len(told) == 3 and ("uncompiled" in told[2] or "times as fast" in told[2])
    torch.testing.assert_close(*(torch.tensor(who.coefficients[0]) for who in (one, plain)), rtol=0.1, atol=1e-3)
    assert not any("forward" in vars(part) for part in parts.unet.modules())
