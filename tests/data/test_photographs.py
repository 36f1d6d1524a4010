"""From JPEG files to batches: the fast way against torchvision's recipe, odd and bad files, workers, ranks."""

from __future__ import annotations

import io
import multiprocessing
import os
import resource
import signal
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms

from configs.schema import AugmentConfig, DataConfig
from data import ClassificationBatch, Data, Loading, decode, draws, photographs
from data import build_data as build_from_configuration
from data.decode import MAX_BAD_ALWAYS, tolerated
from data.draws import Draws
from data.loader import _end_workers
from data.photographs import random_box, resized
from data.pipelines import RegularizerError, photograph
from tests.named import refused
from tests.opening import build_data

PHOTOS = load_sample_images().images
FAST = ("simplejpeg", "pillow")
# Both cubic kernels round to 8 bits between their two passes, with other weights: 2 levels at most were seen.
LEVELS = 2


def jpeg(pixels: np.ndarray, mode: str = "RGB", kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def exif_rotated() -> bytes:
    tags = Image.Exif()
    tags[0x0112] = 6  # "turn by 90 degrees to show"
    return jpeg(PHOTOS[0], exif=tags)


ODD = {
    "420": jpeg(PHOTOS[0], quality=90),
    "422": jpeg(PHOTOS[1], quality=90, subsampling="4:2:2"),
    "444": jpeg(PHOTOS[0], quality=95, subsampling="4:4:4"),
    "progressive": jpeg(PHOTOS[1], progressive=True),
    "gray": jpeg(PHOTOS[0], "L"),
    "cmyk": jpeg(PHOTOS[0], "CMYK"),
    "png named JPEG": jpeg(PHOTOS[0][:200, :300], kind="PNG"),
    "rgba": jpeg(PHOTOS[0][:200, :300], "RGBA", kind="PNG"),
    "palette": jpeg(PHOTOS[0][:200, :300], "P", kind="PNG"),
    "exif": exif_rotated(),
    "1x1": jpeg(PHOTOS[0][:1, :1]),
    "wide": jpeg(np.tile(PHOTOS[0][:40, :600], (1, 2, 1))),
    "tall": jpeg(PHOTOS[0][:400, :17]),
}


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


def jpeg_header(width: int, height: int) -> bytes:
    content = bytearray(ODD["420"])
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(content)


BAD = {
    "truncated": ODD["420"][: len(ODD["420"]) // 2],
    "truncated png": ODD["png named JPEG"][: len(ODD["png named JPEG"]) // 2],
    "empty": b"",
    "text": b"<html>404 not found</html>",
    "zeros": bytes(5000),
    "header bomb": jpeg_header(65000, 65000),
    "png bomb": png_header(65000, 65000),
    "large header": jpeg_header(10_000, 9_100),
}


def draw(index: int) -> Draws:
    return Draws(draws.uniforms(0, 0, np.array([index]), 0, draws.MOST)[0], 0, 0, index)


def picture(size: int, decoder: str, flip: bool = False) -> Callable[[bytes, Draws | None], np.ndarray]:
    """File content to pixels, as a loader makes them; without draws in evaluation."""
    decoded = None if decoder == "pil" else decode.pick_decoder(decoder)

    def run(content: bytes, drawn: Draws | None) -> np.ndarray:
        sample = {"images": content}
        for step in photograph(size, decoded, AugmentConfig(flip=flip), [], drawn is not None):
            sample = step(sample, drawn)
        return np.asarray(sample["images"])

    return run


def levels(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("decoder", FAST)
@pytest.mark.parametrize("name", ODD)
def test_the_fast_way_is_the_reference_recipe_within_rounding(name: str, decoder: str) -> None:
    fast, reference = picture(64, decoder, flip=True), picture(64, "pil", flip=True)
    assert fast(ODD[name], None).shape == (64, 64, 3)
    assert levels(fast(ODD[name], None), reference(ODD[name], None)) <= LEVELS
    for index in range(6):
        assert levels(fast(ODD[name], draw(index)), reference(ODD[name], draw(index))) <= LEVELS


def test_resized_pixels_lie_in_memory_as_they_are_read() -> None:
    photo = PHOTOS[0].copy()
    for part in (photo, photo[20:220, 10:310]):  # with the channels outermost a batch takes longer to fill
        assert resized(part, 64, 48).flags.c_contiguous


@pytest.mark.parametrize("name", ["420", "422", "444", "progressive", "exif"])
def test_simplejpeg_decodes_to_the_pixels_of_pillow(name: str) -> None:
    assert np.array_equal(decode.with_simplejpeg(ODD[name]), decode.with_pillow(ODD[name]))
    assert decode.with_simplejpeg(ODD[name]).shape == PHOTOS[0].shape  # not turned by EXIF


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("shape", [(427, 640), (333, 201), (50, 50), (231, 230), (200, 305)])
def test_evaluation_with_pil_is_torchvisions_to_the_last_bit(shape: tuple[int, int], size: int) -> None:
    content = jpeg(PHOTOS[0][: shape[0], : shape[1]])
    bicubic = transforms.InterpolationMode.BICUBIC
    theirs = transforms.Compose([transforms.Resize(round(size / 0.875), bicubic), transforms.CenterCrop(size)])
    expected = np.array(theirs(decode.open_rgb(content)))
    assert np.array_equal(picture(size, "pil")(content, None), expected)
    assert levels(picture(size, "auto")(content, None), expected) <= LEVELS


def test_boxes_follow_the_law_of_random_resized_crop() -> None:
    """Area, aspect and place of 4,000 boxes beside torchvision's: two-sample Kolmogorov-Smirnov, 3.04 / sqrt(2,000).

    Each of the 8 comparisons has a false-alarm rate below 2 exp(-2 * 2.15^2) = 2e-4; the seeds are fixed.
    """
    from scipy.stats import ks_2samp

    for height, width in ((375, 500), (300, 900)):
        ours = np.array([random_box(height, width, draw(i).uniforms[draws.BOX :]) for i in range(4000)])
        torch.manual_seed(0)
        image = torch.empty(3, height, width)
        get = transforms.RandomResizedCrop.get_params
        theirs = np.array([get(image, photographs.AREA, photographs.ASPECT) for _ in range(4000)])
        for column in range(4):
            assert ks_2samp(ours[:, column], theirs[:, column]).statistic < 2.15 * (2 / 4000) ** 0.5
        assert (ours[:, 0] + ours[:, 2] <= height).all()
        assert (ours[:, 1] + ours[:, 3] <= width).all()
        assert ours.min(0)[2:].min() > 0


def test_boxes_reach_all_four_edges() -> None:
    ends = np.zeros((10, 4))
    assert random_box(100, 200, ends.ravel())[:2] == (0, 0)
    ends[:, 2:] = 1 - 2.0**-53
    top, left, height, width = random_box(100, 200, ends.ravel())
    assert (top + height, left + width) == (100, 200)
    assert abs(height * width - 0.08 * 100 * 200) < 50
    ends[:, 0] = ends[:, 2]
    _, _, height, width = random_box(300, 400, ends.ravel())  # aspect 3/4 does not fit: the central box
    assert (height, width) == (300, 400)


def test_a_flip_is_drawn_for_half_of_the_images() -> None:
    plain, flipped = picture(16, "auto"), picture(16, "auto", flip=True)
    for index in range(60):
        expected = plain(ODD["420"], draw(index))
        if draw(index).uniforms[draws.FLIP] < 0.5:
            expected = expected[:, ::-1]
        assert np.array_equal(flipped(ODD["420"], draw(index)), expected)


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1), (1, 300)])
def test_where_no_box_fits_the_central_one_is_taken(height: int, width: int) -> None:
    never = np.ones(draws.BOX_DRAWS) * 0.999
    never[1::4] = 0.5 if height == width else never[1::4]
    get = transforms.RandomResizedCrop.get_params
    theirs = get(torch.empty(3, height, width), [1.0, 1.0], [0.75, 4 / 3])
    assert random_box(height, width, never) == theirs


@pytest.mark.parametrize("decoder", decode.DECODERS)
def test_more_than_eight_bits_a_channel_are_refused_and_not_clipped(decoder: str) -> None:
    out = io.BytesIO()
    Image.fromarray(np.full((80, 80), 40_000, np.uint16)).save(out, "PNG")
    with refused("8 bits"):
        picture(64, decoder)(out.getvalue(), None)


@pytest.mark.parametrize(("name", "decoder"), [*zip(BAD, cycle(("auto", "pillow"))), *zip(BAD, cycle(("pil", "auto")))])
def test_a_bad_file_raises_soon_and_in_little_memory(name: str, decoder: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    with pytest.raises(Exception):  # noqa: B017, PT011 - any; the loader turns it into one line
        picture(64, decoder)(BAD[name], None)
    assert time.process_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_a_strip_that_would_be_blown_up_is_refused() -> None:
    with refused("pixels"):
        picture(224, "auto")(jpeg(np.zeros((1, 60_000, 3), np.uint8)), None)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    numbers = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 7)):
        for label, photo in enumerate(PHOTOS):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                top, left = numbers.integers(0, 300, 2)
                content = jpeg(photo[top : top + 60 + i, left : left + 90 - i])
                (folder / f"{i:02d}.JPEG").write_bytes(content)
    return root


ALL = {"flip": True, "cutout": 8, "autoaugment": "imagenet"}


def photos(root: Path, **options: object) -> Data:
    given = {"root": root, "image_size": 32, "batch_size": 8, "val_fraction": 0.0, "augment": ALL, **options}
    return build_data("imagenet", **given)  # type: ignore[arg-type]


def equal(one: ClassificationBatch, other: ClassificationBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.plain().values(), other.plain().values(), strict=True))


def test_batches_do_not_depend_on_the_number_of_workers(tree: Path) -> None:
    alone, helped = photos(tree), photos(tree, workers=2)
    for one, other in ((alone.train, helped.train), (alone.test, helped.test)):
        assert all(equal(a, b) for a, b in zip(one.epoch(1), other.epoch(1), strict=True))
    assert all(equal(a, b) for a, b in zip(list(alone.train.epoch(1))[2:], helped.train.epoch(1, 2), strict=True))


def test_workers_stay_where_nobody_asks_for_more_than_the_last_batch(tree: Path) -> None:
    test, seen = photos(tree, workers=1).test, []
    others = {child.pid for child in multiprocessing.active_children()}
    for _ in range(2):
        batches = test.epoch(0)
        assert sum(next(batches).size for _ in range(len(test))) == test.num_samples
        del batches
        seen.append({child.pid for child in multiprocessing.active_children()} - others)
    assert seen[0] == seen[1] != set()


def test_each_epoch_draws_anew(tree: Path) -> None:
    data = photos(tree, augment={})
    first, second = (
        {
            i: image
            for batch in data.train.epoch(e)
            for i, image in zip(batch.indices.tolist(), batch.images, strict=True)
        }
        for e in (0, 1)
    )
    assert first.keys() == second.keys() == set(range(40))
    assert list(first) != list(second)
    assert not any(torch.equal(first[i], second[i]) for i in first)


def test_ranks_share_out_the_batches(tree: Path) -> None:
    alone, *ranks = photos(tree), *(photos(tree, rank=rank, world_size=2) for rank in range(2))
    for batch, *shares in zip(alone.train.epoch(1), *(rank.train.epoch(1) for rank in ranks), strict=True):
        assert all(
            torch.equal(whole, torch.cat(parts))
            for whole, *parts in zip(*(b.plain().values() for b in (batch, *shares)), strict=True)
        )
    seen = torch.cat([batch.indices for rank in ranks for batch in rank.test.epoch(0)])
    assert sorted(seen.tolist()) == list(range(14))


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_are_what_the_network_expects(tree: Path, channels_last: bool) -> None:
    data = photos(tree, augment={}, channels_last=channels_last, decoder="pil")
    batch = next(data.test.epoch(0))
    assert batch.images.shape == (8, 3, 32, 32)
    assert batch.images.dtype == torch.float32
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.images.is_contiguous(memory_format=layout)
    assert batch.labels.tolist() == [0] * 7 + [1]
    preset = transforms.Compose(
        [
            transforms.Resize(37, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    assert torch.allclose(batch.images[7], preset(Image.open(tree / "val" / "class1" / "00.JPEG")), atol=1e-5)


def test_cutout_is_made_after_normalization(tree: Path) -> None:
    with_hole = next(photos(tree, augment={"cutout": 16}).train.epoch(0)).images
    without = next(photos(tree, augment={}).train.epoch(0)).images
    hole = (with_hole == 0).all(1)
    assert (hole.sum((1, 2)) >= 64).all()
    assert torch.equal(with_hole.permute(0, 2, 3, 1)[~hole], without.permute(0, 2, 3, 1)[~hole])


def test_loading_leaves_the_global_generator_alone(tree: Path) -> None:
    state = torch.default_generator.get_state()
    for workers in (0, 1):
        next(photos(tree, workers=workers).train.epoch(0))
    assert torch.equal(torch.default_generator.get_state(), state)


@pytest.fixture
def spoiled(tree: Path, tmp_path: Path) -> Path:
    """The tree with one truncated file in each split."""
    for file in tree.rglob("*.JPEG"):
        copy = tmp_path / file.relative_to(tree)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    for name in ("train/class0/19.JPEG", "val/class1/03.JPEG"):
        (tmp_path / name).write_bytes(BAD["truncated"])
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_ends_the_run_in_one_line_with_its_path(spoiled: Path, workers: int) -> None:
    data = photos(spoiled, workers=workers)
    for loader, name in ((data.train, "train/class0/19.JPEG"), (data.test, "val/class1/03.JPEG")):
        with refused(spoiled / name, "data.on_bad_image=skip"):
            list(loader.epoch(0))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_skip_takes_the_next_good_image_and_counts(spoiled: Path, tree: Path, workers: int) -> None:
    data, sound = photos(spoiled, workers=workers, on_bad_image="skip"), photos(tree)
    for batch, whole in zip(data.train.epoch(0), sound.train.epoch(0), strict=True):
        same = whole.indices != 19
        assert torch.equal(batch.indices[same], whole.indices[same])
        assert torch.equal(batch.images[same], whole.images[same])
        assert (batch.indices[~same] == 20).all()
        assert (batch.labels[~same] == 1).all()
    assert list(data.train.bad_images) == [str(spoiled / "train/class0/19.JPEG")]
    taken = torch.cat([batch.indices for batch in data.test.epoch(0)])
    assert taken.tolist() == [i for i in range(14) if i != 10]  # evaluation leaves it out: nothing is counted twice
    assert list(data.test.bad_images) == [str(spoiled / "val/class1/03.JPEG")]


def test_too_many_bad_images_end_the_run_all_the_same(spoiled: Path) -> None:
    for i in range(MAX_BAD_ALWAYS):
        (spoiled / f"train/class1/{2 * i:02d}.JPEG").write_bytes(b"")
    with refused("6 of 40 images", "5 may"):
        list(photos(spoiled, on_bad_image="skip").train.epoch(0))
    share = photos(spoiled, on_bad_image="skip", rank=0, world_size=2).train
    assert share.batches.of_this_rank == 20  # what this rank reads: two ranks do not get twice the allowance
    for i in range(20):
        (spoiled / f"train/class1/{i:02d}.JPEG").unlink()
        (spoiled / f"train/class0/{i:02d}.JPEG").write_bytes(b"")
    (spoiled / "train/class1/00.JPEG").write_bytes(ODD["420"])
    with refused(spoiled):
        list(photos(spoiled, on_bad_image="skip").train.epoch(0))


def test_a_few_images_may_be_left_out_of_few() -> None:
    allowed = {count: tolerated(count) for count in (1, 6, 8, 20, 5_000, 10_000)}
    assert allowed == {1: 1, 6: 1, 8: 2, 20: 5, 5_000: 5, 10_000: 10}


def test_a_killed_worker_ends_the_run_with_its_cause(tree: Path) -> None:
    before = set(psutil.Process().children())
    epoch = photos(tree, workers=1).train.epoch(0)  # 5 batches; the worker is given 2 ahead, so it has work to do
    next(epoch)
    (worker,) = set(psutil.Process().children()) - before
    worker.suspend()
    waiting = threading.Event()
    threading.Thread(target=lambda: waiting.wait() and (time.sleep(0.1), worker.kill())).start()
    with refused("worker", as_a=RuntimeError):
        waiting.set()
        list(epoch)


def test_the_signal_of_a_worker_s_end_is_not_left_to_what_cleans_up(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    def connection_breaks_before_the_signal() -> Iterator[object]:
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGCHLD)).start()
        raise ConnectionResetError
        yield

    handler = signal.signal(signal.SIGCHLD, killed)
    monkeypatch.setattr("data.loader.DataLoader", lambda *_, **__: connection_breaks_before_the_signal())
    try:
        with refused("pid 7", as_a=RuntimeError):
            list(photos(tree).train.epoch(0))
    finally:
        signal.signal(signal.SIGCHLD, handler)


def test_workers_stay_over_epochs_with_equal_draws(tree: Path) -> None:
    train, before = photos(tree, workers=1).train, set(psutil.Process().children())
    workers = []
    for epoch in range(2):
        batches = list(train.epoch(epoch))
        workers.append(set(psutil.Process().children()) - before)
        for ours, alone in zip(batches, photos(tree).train.epoch(epoch), strict=True):
            assert torch.equal(ours.images, alone.images)
            assert torch.equal(ours.labels, alone.labels)
    assert len(workers[0]) == 1
    assert workers[0] == workers[1]

    # An epoch that is left takes its worker along, and so does the loader itself.
    next(train.epoch(2))
    assert not set(psutil.Process().children()) - before
    list(train.epoch(2))
    del train
    assert not set(psutil.Process().children()) - before


def test_workers_that_are_left_do_not_hold_up_the_end_of_python(tree: Path) -> None:
    before, handler = set(psutil.Process().children()), signal.getsignal(signal.SIGCHLD)
    epoch = photos(tree, workers=1).train.epoch(0)
    next(epoch)
    workers = set(psutil.Process().children()) - before
    others = multiprocessing.active_children()
    _end_workers()
    for other in others:  # those of loaders of earlier tests, too: torch would raise at the next signal of a child
        other.join(10)
    alive = psutil.wait_procs(workers, timeout=10)[1]
    epoch.close()
    signal.signal(signal.SIGCHLD, handler)
    assert len(workers) == 1
    assert not alive


def test_a_mistake_in_a_regularizer_is_no_unusable_image(tree: Path) -> None:
    class Broken:
        def on_image(self, pixels: np.ndarray, draws: Draws) -> np.ndarray:
            raise IndexError("no such place")

    data = DataConfig("imagenet", str(tree), image_size=32, on_bad_image="skip", val_fraction=0.0)
    opened = build_from_configuration(data, AugmentConfig(), Loading(4, regularizers=[Broken()]))
    with pytest.raises(RegularizerError, match="Broken"):
        next(opened.train.epoch(0))
    assert not opened.train.bad_images
