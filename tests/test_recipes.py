"""docs/recipes.md quotes lines that stand where it says, and a recipe's numbers stand in one file each."""

import pathlib
import re
import shlex

import pytest

from pipeline import configure, registry

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPES = (ROOT / "docs/recipes.md").read_text()
# `path`: `line of that file`
QUOTES = sorted(set(re.findall(r"`((?:gin|pipeline)/[\w/.]+\.(?:gin|py))`: `([^`]+)`", RECIPES)))
OF_THE_PAPERS = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.glob("gin/f*.gin")
    if re.fullmatch(r"f\d(plus)?_(jft|imagenet|imagenet_scratch)", path.stem)
)
BINDING = re.compile(r"^([A-Za-z_][\w./]*) = (.+)$", re.MULTILINE)


def included(file):
    """A gin file and all that it includes."""
    inner = re.findall(r"^include '(.+)'$", (ROOT / file).read_text(), re.MULTILINE)
    return {file}.union(*map(included, inner))


def places(file):
    """Binding to the files that give it a value, of all that `file` includes."""
    found = {}
    for part in included(file):
        for name, value in BINDING.findall((ROOT / part).read_text()):
            if value != "%gin.REQUIRED":
                found.setdefault(name, []).append(part)
    return found


def test_there_are_quotes_of_every_kind():
    files = {file for file, _ in QUOTES}
    assert len(QUOTES) > 60
    assert {f"gin/f{i}_imagenet_scratch.gin" for i in range(8)} <= files
    assert {f"gin/run/{name}.gin" for name in ("pretrain", "finetune", "finetune_study", "imagenet_scratch")} <= files
    assert len(OF_THE_PAPERS) == 6 + 6 + 8


@pytest.mark.parametrize(("file", "line"), QUOTES, ids=lambda value: value[:60])
def test_a_quoted_line_stands_in_its_file(file, line):
    # A line of code may go on with a comma or a comment.
    lines = [re.sub(r"(,|\s+#.*)$", "", found.strip()) for found in (ROOT / file).read_text().splitlines()]
    assert line.removesuffix(",") in lines


def recipe_rows():
    """(section, cells) of every row of a table of a recipe, which says its source."""
    for section in re.split(r"^## ", RECIPES, flags=re.MULTILINE):
        for table in re.findall(r"^\| what \| value \| source \|.*\n((?:\|.*\n)+)", section, re.MULTILINE):
            for row in table.splitlines()[1:]:
                yield section.splitlines()[0], [cell.strip() for cell in row.strip("|").split("|")]


def test_each_row_of_a_recipe_says_in_one_of_four_words_where_it_comes_from():
    words = re.findall(r"^\| (\w+) \| .* \|$", RECIPES.split("| source | means |")[1].split("\n\n")[0], re.MULTILINE)
    assert words == ["stated", "code", "inferred", "ours"]
    rows = list(recipe_rows())
    assert {cells[2] for _, cells in rows} == set(words) and len(rows) > 60
    sections = {section for section, _ in rows}
    assert len(sections) == 3
    asked = (
        "weight decay",
        "label smoothing",
        "averaged weights",
        "warm-up",
        "stochastic depth",
        "dropout",
        "augmentation",
    )
    for section in ("Pre-training (the study)", "Fine-tuning on ImageNet (the study)"):
        answered = [cells[0] for name, cells in rows if name == section]
        assert set(asked) <= set(answered), section


@pytest.mark.parametrize("experiment", OF_THE_PAPERS)
def test_each_value_of_a_recipe_stands_in_one_file(experiment):
    doubled = {name: files for name, files in places(experiment).items() if len(files) > 1}
    assert not doubled


@pytest.mark.parametrize("experiment", OF_THE_PAPERS)
def test_each_value_of_a_recipe_is_in_the_tables(experiment):
    """So that nobody has to look for where a number comes from."""
    quoted = {(file, line.split(" = ")[0]) for file, line in QUOTES}
    for name, files in places(experiment).items():
        numbers = [v for n, v in BINDING.findall((ROOT / files[0]).read_text()) if n == name and v[0].isdigit()]
        if not numbers or name == "SEED":
            continue
        if name == "EPOCHS" and experiment.endswith("_jft.gin"):
            assert "0.25 to 8" in RECIPES
            continue
        assert (files[0], name) in quoted, f"{files[0]}: {name} = {numbers[0]}"


def commands():
    """The commands of the page, as lists of words."""
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```$", RECIPES, re.MULTILINE | re.DOTALL))
    return [shlex.split(line) for line in blocks.replace("\\\n", " ").splitlines() if line.startswith("python ")]


def test_commands_name_files_that_exist():
    named = [word.removeprefix("--gin_file=") for words in commands() for word in words]
    named = [word for word in named if re.fullmatch(r"(gin|pipeline|beam|examples)/[\w/.]+\.(gin|py)", word)]
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("words", [w for w in commands() if w[1] == "pipeline/main.py"], ids=" ".join)
def test_a_command_passes_all_checks(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    files = [word.removeprefix("--gin_file=") for word in words if word.startswith("--gin_file=")]
    params = [word.removeprefix("--gin_param=") for word in words if word.startswith("--gin_param=")]
    tasks = [word.removeprefix("--task=") for word in words if word.startswith("--task=")]
    assert set(tasks) <= set(registry.TASKS)
    folders = [word for word in words if word.startswith("--model_dir=")]
    assert len(words) == 2 + len(files) + len(params) + len(tasks) + len(folders)
    registry.register()
    configure.load(files, params, entry="main", tasks=registry.TASKS)
    made = configure.get("Experiment")()
    assert made.data.batch_shape().examples > 0
