"""What every backend returns, unit by unit: values, gradients, layouts, types, edges, errors."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dropblock import drop_block1d, drop_block2d, drop_block3d, drop_block_counted
from dropblock.operator import SAVED_BYTES, drop
from tests.dropblock.dropblock_backends import (
    BACKENDS,
    EACH_BACKEND,
    INTERPRETED,
    case_of,
    device_of,
    kept_units,
    knows,
    run,
)

LAYOUTS = [torch.contiguous_format, torch.channels_last]
CONTIGUOUS, LAST, LAST_3D = torch.contiguous_format, torch.channels_last, torch.channels_last_3d
# size, block_size, dtype, layout: odd, even, 1, the map, larger, one side clamped; every type; one axis and three. Each
# backend meets all of these, but not every product of them.
EXACT_CASES = [
    ((14, 14), 7, torch.float32, CONTIGUOUS),
    ((14, 14), 7, torch.float32, LAST),
    ((14, 14), 7, torch.bfloat16, LAST),
    ((14, 14), 6, torch.float16, CONTIGUOUS),
    ((6, 7), 4, torch.float64, LAST),
    ((4, 4), 1, torch.float16, LAST),
    ((7, 7), 7, torch.bfloat16, CONTIGUOUS),
    ((7, 7), 7, torch.float32, LAST),
    ((5, 20), 7, torch.float64, CONTIGUOUS),
    ((1, 9), 2, torch.float32, LAST),
    ((3, 2), 7, torch.bfloat16, LAST),
    ((17,), 3, torch.float32, CONTIGUOUS),
    ((3,), 3, torch.bfloat16, CONTIGUOUS),
    ((5, 4, 6), 2, torch.float32, LAST_3D),
    ((2, 6, 5), 3, torch.float16, CONTIGUOUS),
    ((3, 3, 3), 3, torch.float32, LAST_3D),
]

ON_TRITON = [case_of("triton", layout) for layout in LAYOUTS] if "triton" in BACKENDS else []


@pytest.fixture(params=EACH_BACKEND)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def maps(
    backend: str, *shape: int, dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAYOUTS[0]
) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.to(device_of(backend), dtype).contiguous(memory_format=layout).requires_grad_()


def selected(x: Tensor, mask: Tensor, backend: str = "") -> Tensor:
    """The result in one line: where(mask, round(exact(x) * scale), 0), exact being float32, or float64 for float64."""
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale = torch.tensor(mask.numel() / int(mask.sum()), dtype=torch.float64).to(exact)
    product = x.detach().to(exact) * scale.to(x.device)
    if backend == "triton" and INTERPRETED and x.dtype == torch.bfloat16:
        # The interpreter alone cuts the lower half off where Triton on a GPU rounds to nearest.
        product = (product.view(torch.int32) & -65536).view(torch.float32)
    return torch.where(mask.to(x.device), product.to(x.dtype), 0)


@pytest.mark.parametrize("name", EACH_BACKEND)
def test_the_backend_is_the_one_that_it_is_called(name: str) -> None:
    """Where Triton cannot compile, the dense backend would pass every test under its name."""
    assert name == "reference" or BACKENDS[name].name == name


@pytest.mark.parametrize(
    ("backend", "size", "block", "dtype", "layout"),
    [case_of(backend, *case) for case in EXACT_CASES for backend in BACKENDS if knows(backend, case[0])],
    ids=str,
)
def test_output_and_gradient_are_exact(
    backend: str, size: tuple[int, ...], block: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    mask = kept_units(backend, (4, 24, *size), 0.7, block, seed=7)
    x = maps(backend, 4, 24, *size, dtype=dtype, layout=layout)
    y, kept = run(backend, x, 0.7, block, 7)
    assert int(kept) == int(mask.sum())
    assert kept.dtype == torch.int64
    assert y.dtype == dtype
    assert y.stride() == x.stride()
    assert torch.equal(y, selected(x, mask, backend))
    gradient = maps(backend, 4, 24, *size, dtype=dtype).detach()
    y.backward(gradient)
    assert x.grad is not None
    assert x.grad.stride() == x.stride()
    assert torch.equal(x.grad, selected(gradient, mask, backend))


def test_memory_that_is_neither_contiguous_nor_channels_last(backend: str) -> None:
    wide = maps(backend, 4, 24, 14, 28).detach()
    x = wide[..., ::2].requires_grad_()
    y, _ = run(backend, x, 0.8, 5, 3)
    y.backward(gradient=torch.ones((), device=x.device).expand_as(y))
    mask = kept_units(backend, (4, 24, 14, 14), 0.8, 5, 3)
    assert torch.equal(y, selected(x, mask, backend))
    assert torch.equal(x.grad, selected(torch.ones_like(x), mask))


def test_nothing_is_dropped_at_keep_prob_one(backend: str) -> None:
    x = maps(backend, 2, 8, 9, 9)
    y, kept = run(backend, x, 1.0, 7, 1)
    assert torch.equal(y, x)
    assert int(kept) == x.numel()


def test_everything_dropped_gives_zeros(backend: str) -> None:
    x = maps(backend, 2, 8, 7, 7)
    y, kept = run(backend, x, 0.0, 7, 1)
    y.sum().backward()
    assert int(kept) == 0
    assert torch.equal(y, torch.zeros_like(x))
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_keep_prob_zero_with_a_block_of_one(backend: str) -> None:
    assert int(run(backend, maps(backend, 2, 3, 4, 4), 0.0, 1, 1)[1]) == 0


def test_an_empty_batch_passes(backend: str) -> None:
    x = maps(backend, 0, 8, 7, 7)
    y, kept = run(backend, x, 0.5, 3, 1)
    y.sum().backward()
    assert y.shape == x.shape
    assert int(kept) == 0


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("block", [3, 7])
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_non_finite_units_inside_a_block_become_zero(
    backend: str, value: float, block: int, layout: torch.memory_format
) -> None:
    mask = kept_units(backend, (4, 16, 7, 7), 0.7, block, seed=2)
    x = torch.where(mask, 1.0, value).to(device_of(backend)).contiguous(memory_format=layout).requires_grad_()
    y, _ = run(backend, x, 0.7, block, 2)
    y.backward(x.detach())
    for result in (y, x.grad):
        assert torch.equal(result, selected(torch.ones_like(x), mask))


def test_more_than_65504_kept_units_in_float16(backend: str) -> None:
    x = torch.ones(8, 64, 16, 16, dtype=torch.float16, device=device_of(backend))
    y, kept = run(backend, x, 0.9, 7, 1)
    assert int(kept) > 65504
    assert float(y.double().mean()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("block", [2] if INTERPRETED else [1, 2, 7])  # some hundred calls each
def test_gradients_of_first_and_second_order(backend: str, block: int) -> None:
    x = maps(backend, 1, 1, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: run(backend, t, 0.8, block, 11)[0], x)
    assert torch.autograd.gradgradcheck(lambda t: run(backend, t, 0.8, block, 11)[0], x)


@pytest.mark.parametrize("block", [2, 7])
def test_a_mask_is_a_function_of_its_seed_alone(backend: str, block: int) -> None:
    shape = (4, 16, 9, 9)
    before = torch.get_rng_state()
    first = kept_units(backend, shape, 0.8, block, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(kept_units(backend, shape, 0.8, block, 5), first)
    assert not torch.equal(kept_units(backend, shape, 0.8, block, 6), first)
    x = maps(backend, *shape, layout=torch.channels_last, dtype=torch.float64)
    assert torch.equal((run(backend, x, 0.8, block, 5)[0] != 0).cpu(), first)


@pytest.mark.parametrize("seed", [0, -1, 2**62, 2**63 - 1, -(2**63)])
def test_every_int64_is_a_seed(backend: str, seed: int) -> None:
    assert 0 < int(kept_units(backend, (4, 32, 9, 9), 0.7, 3, seed).sum()) < 4 * 32 * 81


@pytest.mark.parametrize("block", [2, 7])
def test_changing_keep_prob_and_seed_before_backward_does_not_change_the_mask(backend: str, block: int) -> None:
    keep_prob, seed = (torch.tensor(v, device=device_of(backend)) for v in (0.8, 5))
    x = maps(backend, 4, 16, 9, 9)
    y, _ = drop(BACKENDS[backend], x, keep_prob, block, seed)
    keep_prob.fill_(0.1)
    seed.fill_(77)
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad != 0, y != 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("block", "keep_prob"), [(7, 0.9), (7, 0.975), (3, 0.9), (2, 0.5)])
def test_memory_kept_for_backward(backend: str, dtype: torch.dtype, block: int, keep_prob: float) -> None:
    saved: list[Tensor] = []
    x = maps(backend, 4, 32, 14, 14, dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        run(backend, x, keep_prob, block, 1)
    assert saved
    assert sum(t.nbytes for t in saved) <= SAVED_BYTES * x.numel() + 24


@pytest.mark.parametrize(("backend", "layout"), ON_TRITON, ids=str)
def test_how_triton_cuts_the_maps_changes_nothing(
    backend: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dropblock import triton_kernel

    x = maps(backend, 1, 12, 18, 19, layout=layout)
    whole = run(backend, x, 0.8, 7, 9)
    monkeypatch.setattr(triton_kernel, "TILE", 64)  # several programs a map, a line, a row of channels
    in_pieces = run(backend, x, 0.8, 7, 9)
    assert torch.equal(in_pieces[0], whole[0])
    assert torch.equal(in_pieces[1], whole[1])


def test_the_number_of_threads_changes_nothing() -> None:
    x = torch.randn(32, 64, 14, 14)
    arguments = {"keep_prob": torch.tensor(0.8), "block_size": 7, "seed": torch.tensor(3)}
    threads = torch.get_num_threads()
    results = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        results.append(drop_block_counted(x, **arguments))
    torch.set_num_threads(threads)
    for y, kept in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(kept, results[0][1])


def test_without_a_seed_torch_manual_seed_governs() -> None:
    x = torch.ones(2, 8, 9, 9)
    outputs = []
    for _ in range(2):
        torch.manual_seed(4)
        outputs.append((drop_block2d(x, keep_prob=0.8, block_size=3), drop_block2d(x, p=0.2, block_size=3)))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert not torch.equal(outputs[0][0], outputs[0][1])
    assert drop_block2d(x, keep_prob=0.8, block_size=3, training=False) is x


def test_a_seed_may_be_a_whole_number() -> None:
    x = torch.ones(2, 8, 9, 9)
    assert torch.equal(drop_block2d(x, seed=3), drop_block2d(x, seed=torch.tensor(3)))
    with pytest.raises(TypeError, match=r"seed must be .* not 0\.5"):
        drop_block2d(x, seed=0.5)  # type: ignore[arg-type]


def test_one_axis_is_a_map_of_one_line() -> None:
    x, seed = torch.ones(4, 8, 30), torch.tensor(3)
    line = drop_block1d(x, keep_prob=0.8, block_size=5, seed=seed)
    assert torch.equal(line, drop_block2d(x[:, :, None], keep_prob=0.8, block_size=5, seed=seed)[:, :, 0])
    assert 0 < int((line == 0).sum()) < line.numel()


X = torch.ones(2, 8, 9, 9)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: drop_block2d(X[0]), ValueError, "(8, 9, 9)"),
        (lambda: drop_block1d(X), ValueError, "(N, C, L)"),
        (lambda: drop_block3d(X), ValueError, "(N, C, D, H, W)"),
        (lambda: drop_block2d(X.long()), TypeError, "torch.int64"),
        (lambda: drop_block2d([1.0]), TypeError, "list"),
        (lambda: drop_block2d(X, keep_prob=1.5), ValueError, "keep_prob"),
        (lambda: drop_block2d(X, p=-0.5), ValueError, "p "),
        (lambda: drop_block2d(X, drop_prob="x"), TypeError, "drop_prob"),
        (lambda: drop_block2d(X, keep_prob=torch.tensor(-0.5)), ValueError, "keep_prob"),
        (lambda: drop_block2d(X, keep_prob=torch.ones(2)), ValueError, "(2,)"),
        (lambda: drop_block2d(X, p=0.1, keep_prob=0.9), TypeError, "keep_prob and p"),
        (lambda: drop_block2d(X, block_size=0), ValueError, "block_size"),
        (lambda: drop_block2d(X, block_size=7.0), TypeError, "7.0"),
        (lambda: drop_block2d(X, block_size=(3, 5)), TypeError, "(3, 5)"),
        (lambda: drop_block2d(X, 0.1, 7), TypeError, "0.1, 7"),
        (lambda: drop_block1d(X[0], 0.1), TypeError, "drop_block1d"),
        (lambda: drop_block3d(X[None], 0.1), TypeError, "drop_block3d"),
    ],
)
def test_an_error_names_the_culprit_in_one_line(call: Callable[[], Tensor], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=re.escape(named)) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.parametrize(("shape", "block"), [((3, 5, 9, 11), 3), ((2, 40, 7, 7), 7), ((1, 2, 600), 2)])
def test_exact_counters_of_a_layer(backend: str, shape: tuple[int, ...], block: int) -> None:
    """However many programs draw: two calls add up, and leave the word that they share at 0."""
    device, kept = device_of(backend), 0
    counters = tuple(torch.zeros((), dtype=torch.int64, device=device) for _ in range(3))
    for seed in (1, 2):
        x, given = torch.ones(shape, device=device), (torch.tensor(0.8, device=device), block)
        y, number = drop(BACKENDS[backend], x, *given, torch.tensor(seed, device=device), counters)
        assert int(number) == int((y != 0).sum()) < x.numel()
        kept += int(number)
    assert [int(counter) for counter in counters] == [kept, 2 * x.numel(), 0]
