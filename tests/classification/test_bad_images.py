"""Images that are damaged or unusual: trained or skipped by rule, the same way in every run, and listed (faults 10)."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from PIL import Image

from classification.bad_samples import LIST, BadImage, BadSamples
from classification.decoding import UnreadableImage, decode
from classification.names import PackedNames, printable
from classification.world import World
from tests.classification.marked_images import encoded, marked, noise, numbers, plain_data, write_marked
from tests.classification.runs import write_images
from vmamba.errors import UserError
from vmamba.preprocess import in_mode

COUNTS = {"cat": 6, "dog": 6}


def jpeg(image: Image.Image, **options) -> bytes:
    return encoded(image, "JPEG", quality=95, **options)


def exif_turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(Image.new("RGB", (40, 24), "white"), exif=exif)


def animated() -> bytes:
    frames = [Image.new("P", (12, 12), n) for n in (3, 200)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def palette_with_alpha() -> bytes:
    image = Image.new("P", (12, 12), 1)
    image.putpalette([0, 0, 0, 40, 80, 160])
    return encoded(image, "PNG", transparency=bytes([255, 0]))


PHOTO = Image.fromarray(noise(64, 64)).convert("RGB")
SKIPPED = {
    "truncated JPEG": (jpeg(PHOTO)[:900], "truncated"),
    "header of a JPEG alone": (jpeg(PHOTO)[:30], "Truncated File Read"),
    "truncated PNG": (encoded(PHOTO)[:900], "truncated|incomplete"),
    "0 bytes": (b"", "it is empty"),
    "a web page": (b"<!DOCTYPE html><title>404 Not Found</title>", "it is no image"),
    "90,000 x 1,000 pixels": (encoded(Image.new("1", (90_000, 1_000))), "more than 89478485 pixels"),
    "a strip": (encoded(Image.new("L", (3_000, 2))), "3000 x 2 pixels, a strip of more than 256 to 1"),
    "32-bit floats": (encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "32-bit values"),
}
TRAINED = {
    "1 x 1 pixel": encoded(Image.new("RGB", (1, 1), "red")),
    "CMYK": jpeg(PHOTO.convert("CMYK")),
    "16-bit gray PNG": encoded(Image.fromarray(noise(16, 16, np.uint16, 65536))),
    "16-bit PGM": encoded(Image.fromarray(noise(16, 16, np.int32, 65536)), "PPM"),
    "palette with transparency": palette_with_alpha(),
    "gray with alpha": encoded(Image.new("LA", (9, 9), (120, 3))),
    "two colours": encoded(Image.new("1", (9, 9), 1)),
    "turned by EXIF": exif_turned(),
    "animated GIF": animated(),
}


@pytest.mark.parametrize("kind", SKIPPED)
def test_a_bad_image_is_skipped_with_its_reason(kind):
    content, reason = SKIPPED[kind]
    with pytest.raises(ValueError, match=reason) as error:
        in_mode(decode(io.BytesIO(content)), "RGB")
    assert "\n" not in str(error.value) and "BytesIO" not in str(error.value)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.filterwarnings("error")
def test_an_unusual_image_is_trained(kind, mode):
    image = in_mode(decode(io.BytesIO(TRAINED[kind])), mode)
    assert image.mode == mode and min(image.size) >= 1


def test_how_unusual_images_are_seen():
    def pixels(kind: str, mode: str) -> np.ndarray:
        return np.asarray(in_mode(decode(io.BytesIO(TRAINED[kind])), mode))

    deep = noise(16, 16, np.uint16, 65536)
    assert np.array_equal(pixels("16-bit gray PNG", "L"), deep >> 8)
    assert np.array_equal(pixels("16-bit PGM", "L"), noise(16, 16, np.int32, 65536) >> 8)
    assert pixels("turned by EXIF", "RGB").shape == (40, 24, 3)
    assert pixels("palette with transparency", "RGB")[0, 0].tolist() == [40, 80, 160]
    assert pixels("palette with transparency", "RGBA")[0, 0].tolist() == [40, 80, 160, 0]
    assert pixels("CMYK", "RGB").mean() == pytest.approx(np.asarray(PHOTO).mean(), abs=8)
    first = Image.open(io.BytesIO(TRAINED["animated GIF"])).convert("RGB")
    assert np.array_equal(pixels("animated GIF", "RGB"), np.asarray(first))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_damage_anywhere_is_one_kind_of_error(kind):
    whole, draw = encoded(PHOTO, kind), random.Random(0)
    for _ in range(60):
        content = bytearray(whole[: draw.choice([len(whole), draw.randrange(len(whole))])])
        for _ in range(draw.randrange(1, 6)):
            if content:
                content[draw.randrange(min(len(content), 400))] = draw.randrange(256)
        try:
            in_mode(decode(io.BytesIO(bytes(content))), "RGB")
        except UnreadableImage as error:
            assert str(error) and "\n" not in str(error)


@pytest.fixture
def damaged(tmp_path) -> Path:
    """Twelve images in each split, of which the numbers 2, 3 and 11 are bad."""
    root = write_marked(tmp_path / "images", COUNTS)
    for split in ("train", "val"):
        for name, kind in (("cat/02", "0 bytes"), ("cat/03", "a web page"), ("dog/11", "truncated JPEG")):
            (root / split / f"{name}.png").write_bytes(SKIPPED[kind][0])
    return root


def test_training_takes_the_next_good_image_and_keeps_the_batch(damaged):
    whole = [list(batch) for batch in plain_data(damaged).train.sampler]
    expected = [[{2: 4, 3: 4, 11: 0}.get(index, index) for index in batch[1:]] for batch in whole]
    for workers in (0, 2):
        data = plain_data(damaged, "DATA.NUM_WORKERS", workers)
        assert numbers(data.train) == expected
        assert len(data.train.bad) == 3


def test_labels_are_those_of_the_images_taken(damaged):
    for images, labels in plain_data(damaged).train:
        assert [int(value * 255 / 8 + 0.5) >= 6 for value in images[:, 0, 0, 0]] == labels.tolist()


def test_evaluation_leaves_bad_images_out(damaged):
    data = plain_data(damaged)
    assert numbers(data.held_out) == [[0, 1], [4, 5, 6, 7], [8, 9, 10]]
    assert [data.held_out.name(place)[-10:] for place in (1, 2, 8)] == ["cat/01.png", "cat/04.png", "dog/10.png"]
    for name in ("cat/00", "cat/01"):
        (damaged / "val" / f"{name}.png").write_bytes(b"")
    assert numbers(plain_data(damaged).held_out) == [[4, 5, 6, 7], [8, 9, 10]]


def test_bad_images_are_listed_once_and_counted_over_all_epochs(damaged, tmp_path, caplog):
    logger = logging.getLogger("bad images")
    with caplog.at_level(logging.WARNING):
        data = plain_data(damaged, folder=tmp_path, logger=logger)
        for epoch in range(3):
            numbers(data.train, epoch)
        list(data.held_out)
    lines = (tmp_path / LIST).read_text().splitlines()
    assert sorted(line.split("\t")[:2] for line in lines) == sorted(
        [split, str(damaged / split / name)]
        for split in ("train", "val")
        for name in ("cat/02.png", "cat/03.png", "dog/11.png")
    )
    assert [line.split("\t")[2] for line in lines if "cat/02" in line] == ["it is empty"] * 2
    assert len(caplog.messages) == 6 and "cat/03.png: it is no image; the next one takes its place" in caplog.text
    assert caplog.text.count("it is left out") == 3
    again = plain_data(damaged, folder=tmp_path)
    numbers(again.train)
    assert (tmp_path / LIST).read_text().splitlines() == lines


def test_too_many_bad_images_end_the_run(damaged, tmp_path):
    data = plain_data(damaged, "DATA.MAX_BAD", 2, folder=tmp_path)
    with pytest.raises(UserError, match=r"3 images cannot be read, listed in .*bad_samples.txt, more than "
                                        r"DATA.MAX_BAD 2; the last: .*raise DATA.MAX_BAD") as error:  # fmt: skip
        numbers(data.train)
    assert "\n" not in str(error.value) and len((tmp_path / LIST).read_text().splitlines()) == 3
    with pytest.raises(UserError, match="3 images cannot be read"):
        numbers(plain_data(damaged, "DATA.MAX_BAD", 2).held_out)
    assert len(plain_data(damaged, "DATA.MAX_BAD", 3).train.bad) == 0


def test_a_folder_without_one_good_image_ends_the_run(tmp_path):
    root = write_marked(tmp_path, {"cat": 4})
    for file in root.glob("train/cat/*"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="cannot read the image .*: it is empty, nor can the 3 before it; repair"):
        numbers(plain_data(root).train)


def test_a_list_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / LIST).mkdir()
    bad = BadSamples(5, World(), tmp_path, logging.getLogger("bad images"))
    bad.add([BadImage("train", "a.png", "it is empty")])
    assert len(bad) == 1 and f"cannot write {tmp_path / LIST}" in caplog.text


def agree(rank: int, folder: Path, limit: int, answers) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    bad = BadSamples(limit, World(rank, 2), folder)
    bad.add([BadImage("train", f"{rank}.png", "it is empty"), BadImage("train", "both.png", "it is empty")])
    before = len(bad)
    try:
        bad.agree()
        bad.agree()
        answers.put((before, len(bad), ""))
    except UserError as error:
        answers.put((before, len(bad), str(error)))
    dist.destroy_process_group()


@pytest.mark.parametrize("limit", [3, 2])
def test_processes_count_together_and_end_together(tmp_path, limit):
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    processes = [fork.Process(target=agree, args=(rank, tmp_path, limit, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert found[0] == found[1] and found[0][:2] == (0, 3)
    assert ("more than DATA.MAX_BAD 2" in found[0][2]) == (limit == 2)
    assert len((tmp_path / LIST).read_text().splitlines()) == 3


def test_names_of_any_encoding_are_read_and_printed(tmp_path, capsys):
    root = write_marked(tmp_path / "images", {"cat": 4, "dog": 4})
    odd = os.fsencode(root / "train" / "cat") + b"/\xff\xe9\t.png"
    Path(os.fsdecode(odd)).write_bytes(b"")
    good = os.fsencode(root / "train" / "dog") + b"/\xfe.png"
    Path(os.fsdecode(good)).write_bytes(encoded(marked(9)))
    data = plain_data(root, folder=tmp_path)
    assert 9 in sum(numbers(data.train), []) + sum(numbers(data.train, 1), [])
    list(data.train)
    line = (tmp_path / LIST).read_text(encoding="utf-8")
    assert line == f"train\t{root}/train/cat/\\udcff\\udce9\\t.png\tit is empty\n"
    print(line)
    assert "udcff" in capsys.readouterr().out


def test_packed_names_are_the_names():
    names = ["a.jpg", "", "é/ü.png", os.fsdecode(b"\xff.png")]
    packed = PackedNames(names)
    assert list(packed) == names and len(packed) == 4 and packed[2] == "é/ü.png"
    with pytest.raises(IndexError):
        packed[4]
    assert printable(names[3]) == "\\udcff.png" and len(PackedNames()) == 0


def test_a_run_goes_on_without_them_and_says_so(tiny_config, run_main, tmp_path):
    root = write_images(tmp_path / "images", {"train": {"a": 6, "b": 6}, "val": {"a": 3, "b": 3}})
    (root / "train" / "a" / "1.png").write_bytes(b"")
    (root / "val" / "b" / "0.png").write_bytes(b"<html>")
    config = tiny_config(DATA__DATASET="imagenet", DATA__DATA_PATH=str(root), DATA__BATCH_SIZE=4, TRAIN__EPOCHS=1)
    code, output, error = run_main("--cfg", config)
    folder = tmp_path / "out" / "tiny" / "default"
    assert code == 0 and "on the 5 test images" in output and not error
    assert "a/1.png: it is empty; the next one takes its place" in (folder / "log_rank0.txt").read_text()
    assert len((folder / LIST).read_text().splitlines()) == 2
    before = (folder / "last.pth").read_bytes()
    code, output, error = run_main("--cfg", config, "--max-bad", 1, "--epochs", 2)
    assert code == 2 and error.startswith("error: 2 images cannot be read") and error.count("\n") == 1
    assert "Traceback" not in output + error and (folder / "last.pth").read_bytes() == before
