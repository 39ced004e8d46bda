import dataclasses
from collections.abc import Callable

import pytest
import tensorflow as tf

from pipeline import configure


@dataclasses.dataclass(frozen=True)
class Meal:
    dish: str
    guests: int
    salt: float = 1.0
    cook: Callable | None = None
    courses: tuple[int, ...] = ()


def fry(pan: str = "iron") -> str:
    return pan


def serve_meal(meal: Meal, table: str = "round"):
    return meal, table


BASE = """
serve_meal.meal = @Meal()
Meal.dish = %DISH
Meal.guests = 4
DISH = "soup"
"""


@pytest.fixture(autouse=True)
def registered():
    configure.register({"Meal": Meal, "fry": fry, "serve_meal": serve_meal})


def load(tmp_path, text=BASE, *params, name="dinner.gin"):
    path = tmp_path / name
    path.write_text(text)
    configure.load([str(path)], params, entry="serve_meal", tasks=())
    return configure.get("serve_meal")()


def test_files_and_params_bind(tmp_path):
    assert load(tmp_path) == (Meal("soup", 4), "round")
    assert load(tmp_path, BASE, "DISH='stew'", "Meal.salt=2") == (Meal("stew", 4, salt=2), "round")


def test_later_files_win_and_includes_are_followed(tmp_path):
    (tmp_path / "base.gin").write_text(BASE)
    text = f"include '{tmp_path}/base.gin'\nMeal.guests = 9"
    assert load(tmp_path, text)[0].guests == 9


def test_resolved_fills_in_macros_and_leaves_out_what_is_ignored(tmp_path):
    load(tmp_path)
    assert configure.resolved() == {"Meal.dish": "'soup'", "Meal.guests": "4", "serve_meal.meal": "@Meal()"}
    assert configure.resolved(ignore=["serve_meal"]) == {"Meal.dish": "'soup'", "Meal.guests": "4"}


def test_digest_depends_on_values_alone(tmp_path):
    load(tmp_path)
    first = configure.digest(configure.resolved())
    load(tmp_path, BASE.replace("%DISH", '"soup"').replace('DISH = "soup"', ""), name="other.gin")
    assert configure.digest(configure.resolved()) == first
    load(tmp_path, BASE, "Meal.guests=5")
    assert configure.digest(configure.resolved()) != first


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("DISHH = 'stew'", "dinner.gin:6: macro DISHH is used nowhere; did you mean DISH?"),
        ("Meal.salt = %SALT", "macro SALT is used but set nowhere"),
        ("fry.pan = 'steel'", "dinner.gin:6: nothing uses fry.pan"),
        ("Meal.guests = 'four'", "dinner.gin:6: Meal.guests must be int, found 'four'"),
        ("Meal.guests = 4.5", "Meal.guests must be int, found 4.5"),
        ("Meal.guests = True", "Meal.guests must be int, found True"),
        ("Meal.dish = @fry", "Meal.dish must be str"),
        ("Meal.cook = 'me'", "Meal.cook must be"),
        ("Meal.courses = (1, 'two')", "Meal.courses must be tuple"),
        ("serve_meal.meal = @fry()", "serve_meal.meal must be Meal"),
        ("Meal.gests = 4", "gests"),
        ("Mael.guests = 4", "Mael"),
        ("Meal.guests = ", "dinner.gin"),
        ("DISH = %gin.REQUIRED", "dinner.gin:6: DISH must be set"),
        ("include 'nowhere.gin'", "nowhere.gin"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(tmp_path, addition, message):
    with pytest.raises(configure.ConfigurationError) as error:
        load(tmp_path, BASE + addition)
    assert message in str(error.value)


@pytest.mark.parametrize("addition", ["Meal.salt = 2", "Meal.cook = @fry", "Meal.cook = None", "Meal.courses = (1, 2)"])
def test_what_fits_is_accepted(tmp_path, addition):
    load(tmp_path, BASE + addition)


def test_a_parameter_without_value_is_named(tmp_path):
    with pytest.raises(configure.ConfigurationError, match=r"Meal.guests must be set.*--gin_param"):
        load(tmp_path, BASE.replace("Meal.guests = 4", ""))


def test_scopes_hold_values_for_several_of_a_kind(tmp_path):
    lunch = BASE.replace("@Meal()", "@lunch/Meal()").replace("Meal.dish", "lunch/Meal.dish")
    assert load(tmp_path, lunch) == (Meal("soup", 4), "round")
    with pytest.raises(configure.ConfigurationError, match=r"nothing uses lanch/Meal\.salt; did you mean lunch"):
        load(tmp_path, lunch + "lanch/Meal.salt = 2.0")
    with pytest.raises(configure.ConfigurationError, match=r"lunch/Meal\.guests must be set"):
        load(tmp_path, lunch.replace("Meal.guests = 4", ""))
    with pytest.raises(configure.ConfigurationError, match=r"lunch/Meal\.dish must be str"):
        load(tmp_path, lunch.replace("%DISH", "4").replace('DISH = "soup"', ""))


def test_a_mistake_in_a_param_names_the_param(tmp_path):
    with pytest.raises(configure.ConfigurationError, match=r"--gin_param number 2:1: Meal.guests must be int"):
        load(tmp_path, BASE, "Meal.salt=1", "Meal.guests='x'")


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(configure.ConfigurationError) as error:
        load(tmp_path, BASE + "X = 1\nMeal.salt = 'much'")
    assert "X is used nowhere" in str(error.value)
    assert "Meal.salt must be float" in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(configure.ConfigurationError, match=r"'gin/nothing.gin' does not exist"):
        configure.load(["gin/nothing.gin"], [], entry="serve_meal", tasks=())


def test_a_remote_file_is_read_and_a_missing_one_is_named():
    with tf.io.gfile.GFile("ram://configure/dinner.gin", "w") as file:
        file.write(BASE)
    configure.load(["ram://configure/dinner.gin"], [], entry="serve_meal", tasks=())
    assert configure.get("serve_meal")()[0].dish == "soup"
    with pytest.raises(configure.ConfigurationError, match=r"'ram://configure/none\.gin' cannot be read"):
        configure.load(["ram://configure/none.gin"], [], entry="serve_meal", tasks=())


@pytest.mark.parametrize("value", ["data/x", "my-data", "/data/x", "gs://bucket/x", "soup", "2x"])
def test_text_without_quotes_gets_the_advice_to_quote_it(tmp_path, value):
    with pytest.raises(configure.ConfigurationError) as error:
        load(tmp_path, BASE, "Meal.salt=2", f"DISH={value}")
    assert f"--gin_param='DISH=\"{value}\"'" in str(error.value)
    assert "--gin_param number 2" in str(error.value)


@pytest.mark.parametrize("param", ['DISH="soup', "DISH=", "Meel.salt=2"])
def test_other_errors_of_a_parameter_have_no_advice_on_quotes(tmp_path, param):
    with pytest.raises(configure.ConfigurationError) as error:
        load(tmp_path, BASE, param)
    assert "needs quotes" not in str(error.value)
