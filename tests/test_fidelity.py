"""docs/fidelity.md: what it says of gin files, code, tables and tests is so."""

import pathlib
import re

import pytest

from examples import public_accuracy
from pipeline.model import cost, speeds, variants
from pipeline.study import figures, planner
from tests import parameter_count

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/fidelity.md").read_text()
SURE = {"read", "summary", "recalled", "inferred", "ours"}
NAMES = {
    "cost": cost,
    "figures": figures,
    "parameter_count": parameter_count,
    "planner": planner,
    "public_accuracy": public_accuracy,
    "speeds": speeds,
}
NUMBER = re.compile(r"(?<![\w.])\d[\d_]*(?:\.\d+)?(?:e-?\d+)?")
BINDING = re.compile(r"^([A-Za-z_][\w./]*) = (.+)$", re.MULTILINE)


def tables(*columns):
    """Rows of all tables with these columns, as lists of cells."""
    header = r"\| " + r" \| ".join(map(re.escape, columns)) + r" \|\n\|[-|]+\|\n((?:\|.*\n)+)"
    for table in re.findall(header, PAGE):
        for row in table.splitlines():
            yield [cell.strip() for cell in row.strip().strip("|").split("|")]


ROWS = list(tables("what", "the paper", "the authors' code", "ours", "tested by", "how sure"))
COSTS = "ours, by the TPU compiler's estimate"
QUOTED = [
    *(row[2] for row in tables("number", "place", "here", "how sure")),
    *(row[2] for row in tables("what", "the paper", COSTS, "how sure the paper's is")),
]


def quotes(cell):
    """(file, line) of what a cell quotes."""
    return re.findall(r"`((?:gin|pipeline)/[\w/.]+\.(?:gin|py))`: `([^`]+)`", cell)


def numbers(text):
    return [float(number.replace("_", "")) for number in NUMBER.findall(text)]


def test_the_page_has_its_parts():
    assert len(ROWS) > 65 and len(QUOTED) > 18
    assert {row[-1] for row in ROWS} == SURE
    assert all(len(row) == 6 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_is_quoted_stands_in_its_file_and_is_the_papers_number(row):
    """A number of ours is one of the paper's or of the authors' code, unless the row says that it is not."""
    what, paper, code, ours, _, sure = row
    for file, line in quotes(ours):
        lines = [re.sub(r"(,|\s+#.*)$", "", each.strip()) for each in (ROOT / file).read_text().splitlines()]
        assert line in lines, f"{what}: {file} has no line {line}"
        if sure not in ("ours", "inferred"):
            theirs = numbers(f"{paper} {code}")
            assert set(numbers(line.split("=", 1)[1])) <= set(theirs), f"{what}: {line} is neither {paper} nor {code}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_test_that_is_named_exists(row):
    file, name = re.fullmatch(r"`(tests/\w+\.py)::(test_\w+)`", row[4]).groups()
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize("cell", QUOTED)
def test_a_quoted_number_is_that_of_the_tables(cell):
    expression = re.fullmatch(r"`(.+)`", cell).group(1)
    assert eval(expression, dict(NAMES)) is True, expression


def test_the_costs_of_finetuning_in_the_recipes_are_those_of_the_tables():
    """By both readings of 50 epochs, with the source of each speed."""
    recipes = (ROOT / "docs/recipes.md").read_text()
    rows = re.findall(
        r"^\| (F\d\+?) \| ([\d.,]+) \| ([\d,]+) \| ([\d,]+) \| (compiled|scaled by FLOPs) \|$", recipes, re.M
    )
    assert [row[0] for row in rows] == list(variants.STUDY_CORE_BATCHES)
    for name, speed, images, examples, source in rows:
        flops = speeds.training_flops(name, 384, 1000)
        known, hours = speeds.speed(name, flops), speeds.core_hours(name, 50 * 1_281_167, flops, passes=2)
        assert [speed, images, examples] == [f"{known.images_per_second:.1f}", f"{hours:,.0f}", f"{4 * hours:,.0f}"]
        assert known.source.startswith("estimated by the TPU compiler" if source == "compiled" else source)


def test_every_number_of_the_run_and_data_files_is_on_the_page():
    """And so nobody adds one without saying where it comes from."""
    on_page = {(file, line.split(" = ")[0]) for row in ROWS for file, line in quotes(row[3])}
    folders = [ROOT / "gin/run", ROOT / "gin/data"]
    own = {"gin/run/adamw.gin", "gin/run/linear_probe.gin"}  # no part of the papers' recipes
    for path in (path for folder in folders for path in sorted(folder.glob("*.gin"))):
        file = str(path.relative_to(ROOT))
        for name, value in BINDING.findall(path.read_text()):
            if NUMBER.match(value) and file not in own and name != "SEED":
                assert (file, name) in on_page, f"{file}: {name} = {value}"


def test_what_is_inferred_is_called_so_wherever_it_supports_a_number():
    """0.4k core-hours as F0's: in every guide that names them, and in the plan's own words."""
    assert "inferred" in speeds.STUDY_SPEEDS["F0"].source
    for page in ("scaling.md", "performance.md", "fidelity.md"):
        text = (ROOT / "docs" / page).read_text()
        for place in re.finditer(r"\b0\.4k\b|\b400 (?:core-hours|for 0\.25)|about 400\b", text):
            around = text[max(0, place.start() - 300) : place.end() + 300]
            assert "inferred" in around, f"{page}: {around}"
