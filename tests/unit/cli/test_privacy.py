"""``vaultline privacy`` from end to end on a tiny model, its page, and bad input."""

from __future__ import annotations

import json
import os
import re
from base64 import b64decode
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import helper, numpy_helper
from PIL import Image

from vaultline.bench.leakage import CutRecord, LeakageFindings, Shown
from vaultline.bench.thumbnails import SIDE_PX, thumbnail
from vaultline.cli.main import main
from vaultline.cli.privacy import parse_positions
from vaultline.cli.privacy_page import page
from vaultline.cli.privacy_verdicts import Verdicts
from vaultline.core.errors import InputError
from vaultline.core.leakage import CutLeakage, LeakageReport, read_leakage
from vaultline.core.profile import RecordedOn

#: Sample pictures of scikit-image, made smaller.
SAMPLES = Path(__file__).parents[3] / "examples" / "pictures"
FLOAT = onnx.TensorProto.FLOAT


def save_model(path: Path, shape: list[int], name: str = "tiny", inputs: int = 1) -> Path:
    """A model that halves its input twice."""
    random = np.random.default_rng(0)
    convs = [random.standard_normal(sides) / 5 for sides in ((8, shape[1], 3, 3), (8, 8, 3, 3))]
    halve = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Sum", [f"x{n}" for n in range(inputs)], ["s"]),
        helper.make_node("Conv", ["s", "w0"], ["c"], **halve),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w1"], ["y"], **halve),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(f"x{n}", FLOAT, shape) for n in range(inputs)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(w.astype(np.float32), f"w{n}") for n, w in enumerate(convs)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def save_pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        random = np.random.default_rng(number)
        y, x = np.mgrid[:30, :44]
        image = np.stack([5 * x, 7 * y, 3 * (x + y)], axis=2) * random.uniform(0.4, 1, 3)
        image[5:15, number : number + 20] = random.integers(0, 256, 3)
        image[(y - 20) ** 2 + (x - 5 * number) ** 2 < 50] = random.integers(0, 256, 3)
        kind = ("png", "jpg")[number % 2]
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.{kind}")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "m.onnx", [1, 3, 32, 32], name="<b>tiny & co</b>")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return save_pictures(tmp_path / "pictures", 5)


class Reader(HTMLParser):
    """What a page links to, its text, and whether its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_a_report_and_a_page_are_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "report"
    assert main(["privacy", str(model), "--images", str(SAMPLES), "-o", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    report = read_leakage((out / "leakage.json").read_bytes())
    assert printed["report"] == json.loads((out / "leakage.json").read_text())
    assert report.positions[0] == 0
    assert report.cuts[0].reconstruction > 0.99
    assert report.cuts[0].reconstruction > report.cuts[-1].reconstruction > 0.2
    assert (report.blind_ssim or 0) > 0.2
    assert report.images == 7
    shown = read_page((out / "index.html").read_text(encoding="utf-8"))
    assert "Leakage of <b>tiny & co</b>" in shown.text
    assert all(f"Position {position}" in shown.text for position in report.positions)


def test_the_page_needs_nothing_from_outside(model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert main(["privacy", str(model), "--images", str(pictures), "-o", str(out)]) == 0
    text = (out / "index.html").read_text(encoding="utf-8")
    shown = read_page(text)
    assert {"script", "link", "iframe", "object"}.isdisjoint(shown.tags)
    assert all(link.startswith(("data:image/png;base64,", "#cut")) for link in shown.links)
    assert "http" not in text
    assert re.findall(r"url\((?!data:image/png;base64,)", text) == []
    for encoded in re.findall(r"base64,([A-Za-z0-9+/=]+)", text):
        assert b64decode(encoded).startswith(b"\x89PNG")


def test_a_table_is_printed(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "report")
    assert main(["privacy", str(model), "--images", str(pictures), "-o", out, "--cuts", "0"]) == 0
    printed = capsys.readouterr().out
    assert "reconstruction" in printed
    assert "shows" in printed
    assert "wrote" in printed


def test_grey_models_are_measured(pictures: Path, tmp_path: Path) -> None:
    grey = save_model(tmp_path / "grey.onnx", [1, 1, 16, 24])
    out = tmp_path / "report"
    assert main(["privacy", str(grey), "--images", str(pictures), "-o", str(out)]) == 0
    assert read_leakage((out / "leakage.json").read_bytes()).cuts[0].reconstruction > 0.99


def broken_picture(tmp_path: Path, pictures: Path) -> list[str]:
    (pictures / "9.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    return []


def empty_folder(tmp_path: Path, pictures: Path) -> list[str]:
    (tmp_path / "empty").mkdir()
    return ["--images", str(tmp_path / "empty")]


def few_pictures(tmp_path: Path, pictures: Path) -> list[str]:
    return ["--images", str(save_pictures(tmp_path / "few", 2))]


def file_in_the_way(tmp_path: Path, pictures: Path) -> list[str]:
    (tmp_path / "file").write_text("kept")
    return ["-o", str(tmp_path / "file")]


#: Case -> (further options, what the message must say).
BAD: dict[str, tuple[Callable[[Path, Path], list[str]], str]] = {
    "no such folder": (lambda t, p: ["--images", str(t / "none")], "no such folder of pictures"),
    "a file instead of a folder": (
        lambda t, p: ["--images", str(p / "0.png")],
        "no such folder of pictures",
    ),
    "a folder without pictures": (empty_folder, "holds no pictures"),
    "two pictures": (few_pictures, "too few pictures"),
    "a picture that cannot be read": (broken_picture, "not a picture that can be read"),
    "an input shape that is none": (lambda t, p: ["--input-shape", "x"], "not an input shape"),
    "an unknown cut": (lambda t, p: ["--cuts", "0,99"], "no such candidate cut"),
    "cuts that are no numbers": (lambda t, p: ["--cuts", "first"], "not a list of positions"),
    "a file where the report should go": (file_in_the_way, "cannot write the report"),
    "no such preprocessing": (lambda t, p: ["--preprocess", str(t / "none.yaml")], "no such"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_exit_code_2(
    case: str, model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, message = BAD[case]
    out = tmp_path / "report"
    base = ["privacy", str(model), "--images", str(pictures), "-o", str(out), "--json"]
    assert main([*base, *more(tmp_path, pictures)]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert message in error["message"]
    assert not (out / "leakage.json").exists()


#: Case -> (shape of the input, how many inputs, what the message must say).
BAD_MODELS = {
    "an input that is no picture": ([1, 7, 32, 32], 1, "can't tell how pictures become"),
    "two inputs": ([1, 3, 32, 32], 2, "one input"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_models_that_see_no_picture_are_refused(
    case: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape, inputs, message = BAD_MODELS[case]
    bad = save_model(tmp_path / "bad.onnx", shape, inputs=inputs)
    out = str(tmp_path / "report")
    assert main(["privacy", str(bad), "--images", str(pictures), "-o", out, "--json"]) == 2
    assert message in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_refused(model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir(mode=0o500)
    assert main(["privacy", str(model), "--images", str(pictures), "-o", str(out)]) == 2


def test_positions_are_numbers_with_commas() -> None:
    assert parse_positions("0, 5,10") == (0, 5, 10)
    for text in ("", "1,", "1-3", "-1", "²", "1e3", "9" * 30):
        with pytest.raises(InputError):
            parse_positions(text)


CUT = CutLeakage(
    position=0,
    tensors=("x",),
    resolution_px=224,
    similarity=0.9,
    reconstruction=1.0,
    psnr_db=100.0,
    revealing="x[0]",
)
PNG = thumbnail(np.zeros((8, 8, 3)))


def verdicts(*cuts: tuple[int, float], limit: float = 0.3) -> Verdicts:
    """Cuts by (pixels, reconstruction), at positions 0, 1, 2, ..."""
    made = tuple(
        replace(CUT, position=at, resolution_px=pixels, reconstruction=score)
        for at, (pixels, score) in enumerate(cuts)
    )
    report = LeakageReport(
        model_name="m",
        model_digest="ab",
        images_digest="cd",
        images=3,
        decoder="ridge",
        recorded_on=RecordedOn(host="h", cpu="c", date="d", command="vaultline <privacy>"),
        positions=tuple(range(len(cuts))),
        cuts=made,
    )
    return Verdicts(report, limit)


def findings(of: Verdicts) -> LeakageFindings:
    shown = (Shown(channel=b"", reconstruction=PNG, ssim=0.5),)
    records = tuple(
        CutRecord(
            key="", leakage=cut, blind_ssim=0.4, shapes=((1, 3, 8, 8),), shown=shown, elapsed_s=1.0
        )
        for cut in of.report.cuts
    )
    return LeakageFindings(report=of.report, inputs=(PNG,), records=records, training=2, held_out=1)


def test_disagreements_go_both_ways() -> None:
    found = verdicts((224, 1.0), (28, 0.2), (14, 0.5), (7, 0.1))
    assert found.missed == (2,)
    assert found.overcautious == (1,)
    assert found.safe_from == 3
    later = found.later_is_worse(found.report.cuts[1])
    assert later is not None
    assert later.position == 2
    assert found.later_is_worse(found.report.cuts[3]) is None


def test_twenty_pixels_pass_the_rule_and_the_limit_itself_is_no_success() -> None:
    found = verdicts((21, 0.3), (20, 0.3), limit=0.3)
    assert (found.missed, found.overcautious) == ((), (0,))


def test_the_sentence_says_from_where_on_it_is_safe() -> None:
    assert "from position 1 on" in verdicts((9, 0.9), (9, 0.1)).sentence
    assert "even at the last" in verdicts((9, 0.1), (9, 0.9)).sentence
    assert "at none" in verdicts((9, 0.1), (9, 0.2)).sentence


def test_a_rule_that_passes_where_the_attack_succeeds_is_red_on_the_page() -> None:
    found = verdicts((224, 1.0), (28, 0.2), (14, 0.5), (7, 0.1))
    text = page(findings(found), found)
    shown = read_page(text)
    assert '<section class="card cut red" id="cut2">' in text
    assert '<section class="card cut amber" id="cut1">' in text
    assert "Released by the rule, these would show the input:position 2, 14 px" in shown.text
    assert "can go on from here to position 2" in shown.text
    assert "vaultline <privacy>" in shown.text
    assert "Membership." in shown.text


def test_a_page_without_disagreement_says_so() -> None:
    found = verdicts((224, 1.0))
    shown = read_page(page(findings(found), found))
    assert "The rule passes, the attack succeeds: nowhere" in shown.text
    assert "The rule fails, the attack does not succeed: nowhere" in shown.text


@pytest.mark.parametrize("shape", [(300, 200, 3), (7, 7), (1, 500), (5, 9, 3)])
def test_thumbnails_are_small(shape: tuple[int, ...]) -> None:
    png = thumbnail(np.random.default_rng(0).uniform(0, 1, shape))
    size = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    assert max(size) == SIDE_PX
    assert len(png) < 20_000
