"""The mapper: the paper's scale, the bounded scale, initialization from the celebrities."""

from dataclasses import replace

import numpy as np
import torch

from celebctl.basis.basis import CelebBasis
from celebctl.basis.ridge import ridge
from celebctl.learning.config import CLEAN, FAITHFUL
from celebctl.learning.mapper import CoefficientMapper, PretrainedMapper
from celebctl.mapper_training.pretraining import VALIDATION_SIZE, AttributeDataset, train_classifier
from celebctl_models.faces.analysis import FEATURE_DIM


def basis(components: int = 12, width: int = 16) -> CelebBasis:
    rng = np.random.default_rng(0)
    directions = np.stack([np.linalg.qr(rng.standard_normal((width, width)))[0][:components] for _ in range(2)])
    spread = np.linspace(1.0, 0.1, components)[None].repeat(2, 0)
    floats = [a.astype(np.float32) for a in (rng.standard_normal((2, width)), directions, spread)]
    return CelebBasis((floats[0],), (floats[1],), (floats[2],), 40, "distinct")


def features(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.nn.functional.normalize(torch.randn(count, FEATURE_DIM, generator=generator), dim=1)


def test_faithful_coefficients_are_unit_vectors_so_everybody_is_one_unit_from_the_mean() -> None:
    mapper = CoefficientMapper(basis(), FAITHFUL, torch.Generator().manual_seed(0))
    (coefficients,) = mapper.split(mapper(features(5)))
    torch.testing.assert_close((coefficients**2).sum(-1).sqrt(), torch.ones(5, 2))
    built = basis()
    moved = built.embed((coefficients[0].detach().numpy(),))[0] - built.mean[0]
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1.0, rtol=1e-5)


def test_clean_coefficients_stay_within_the_bound_in_celebrity_deviations() -> None:
    mapper = CoefficientMapper(basis(), CLEAN, torch.Generator().manual_seed(0))
    with torch.no_grad():
        mapper.linear.weight.mul_(100)
    units = mapper(features(5)) / mapper.spread
    assert float(units.abs().max()) <= CLEAN.bound + 1e-5
    assert float(units.abs().max()) > 0.9 * CLEAN.bound


def test_the_start_recovers_a_linear_relation_and_ignores_what_a_face_cannot_tell() -> None:
    rng = np.random.default_rng(2)
    x = features(300).numpy()
    noise = rng.standard_normal((300, 4)).astype(np.float32)
    weight, bias, _ = ridge(x[:, :20], np.concatenate([x[:, :4] * 9, noise], 1).astype(np.float32))
    predicted = x[:, :20] @ weight.T + bias
    np.testing.assert_allclose(predicted[:, :4], x[:, :4] * 9, atol=0.05)
    assert np.abs(predicted[:, 4:] - noise.mean(0)).mean() < 0.25 * np.abs(noise).mean()


def test_the_start_is_what_the_mapper_then_says() -> None:
    config = replace(CLEAN, bound=50.0)
    mapper = CoefficientMapper(basis(), config, torch.Generator().manual_seed(0))
    x, units = features(200), np.random.default_rng(5).standard_normal((200, 24)).astype(np.float32)
    mapper.fit_linear(x.numpy(), units)
    predicted = mapper.normalized(x).detach().numpy()
    error = np.abs(predicted - units.mean(0)).mean()
    assert error < np.abs(units - units.mean(0)).mean()


def test_two_text_encoders_are_two_stretches_of_one_layer() -> None:
    one, other = basis(), basis()
    arrays = (one.mean + other.mean, one.components + other.components, one.spread + other.spread)
    both = CelebBasis(*arrays, 40, "distinct")
    for config in (CLEAN, FAITHFUL):
        mapper = CoefficientMapper(both, config, torch.Generator().manual_seed(0))
        flat = mapper(features(3))
        first, second = mapper.split(flat)
        assert flat.shape == (3, both.size) and first.shape == second.shape == (3, 2, 12)
        torch.testing.assert_close(torch.cat([first.flatten(1), second.flatten(1)], 1), flat)
        assert not torch.allclose(first, second)


def test_fresh_weights_come_from_their_seed_and_leave_the_callers_random_numbers_alone() -> None:
    def both(seed: int) -> list[torch.Tensor]:
        reader = train_classifier(people, 8, 2, seed)
        return [*PretrainedMapper.fresh(24, seed).state_dict().values(), *reader.state_dict().values()]

    rng = np.random.default_rng(0)
    shapes = (VALIDATION_SIZE + 9, 4), (4, 6), 4
    looks, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    people = AttributeDataset(features(VALIDATION_SIZE + 9).numpy(), looks, weight, bias, ("{}",))
    before = torch.get_rng_state()
    one = both(7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(one, both(7), strict=True))
    assert not torch.equal(one[2], both(8)[2])
