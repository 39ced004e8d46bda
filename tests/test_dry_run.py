"""The plan of a build, and the number of shards by their size."""

import numpy as np
import pytest
from PIL import Image

from beam import dry_run, launch, options
from beam.errors import BuildError
from tests import ingest_images
from tests.ingest_builds import build


def test_dry_run_plans_from_a_sample_and_writes_nothing(tmp_path, capsys):
    tree = ingest_images.broken_tree(tmp_path / "source")
    flags = ["--dry_run", "--dry_run_images=4000000000", "--shard_mib=200"]
    assert launch.main([f"--input={tree}", f"--output_dir={tmp_path}/set", *flags]) == 0
    shown = capsys.readouterr().out
    assert "Measured on 43 images" in shown and "4,000,000,000" in shown and "core hours" in shown
    assert not (tmp_path / "set").exists()


def test_the_plan_is_arithmetic():
    measured = dry_run.Measurement(
        sample=100,
        written=0.5,
        listing=1000,
        writing=100,
        hashing=50,
        name_bytes=80,
        hash_bytes=200,
        record_bytes=1 << 20,
    )
    flags = options.parse(["--input=x", "--output_dir=y", "--shard_mib=256"]).view_as(options.BuildOptions)
    planned = dry_run.plan(measured, 3_600_000, flags)
    assert planned["shards"] == round(1_800_000 / 256)
    assert planned["bytes per shard"] == pytest.approx(256 << 20, rel=1e-3)
    assert planned["index bytes"] == 8 * (1_800_000 + planned["shards"])
    assert planned["shuffle bytes"] == 3_600_000 * 80
    assert planned["core hours"] == pytest.approx(1 + 10)
    assert planned["files"] == 3 * planned["shards"] and "price" not in planned
    requests = 3_600_000 + 3600 + 11 * planned["shards"]
    assert planned["requests, in an object store"] == requests
    prices = ["--core_hour_price=0.05", "--shuffle_gib_price=0.01", "--request_price=0.4"]
    flags = options.parse(["--input=x", "--output_dir=y", "--shard_mib=256", *prices]).view_as(options.BuildOptions)
    expected = 11 * 0.05 + 3_600_000 * 80 / 2**30 * 0.01 + requests / 1e6 * 0.4
    assert dry_run.plan(measured, 3_600_000, flags)["price"] == pytest.approx(expected)
    both = ["--input=x", "--output_dir=y", "--duplicates=drop", "--duplicate_distance=3", "--shards=90"]
    planned = dry_run.plan(measured, 3_600_000, options.parse(both).view_as(options.BuildOptions))
    assert planned["shuffle bytes"] == 2 * 3_600_000 * 80 + 1_800_000 * 200 * 11, "five bands make ten tables"
    assert (planned["shards"], planned["bytes per shard"]) == (90, 20_000 << 20)
    assert planned["core hours"] == pytest.approx(1 + 10 + 20)


def test_shards_by_target_size(tmp_path):
    source = tmp_path / "source"
    noise = np.random.default_rng(0)
    for i in range(24):
        pixels = noise.integers(0, 256, (200, 200, 3), dtype=np.uint8)
        ingest_images.write(source / f"c{i % 2}" / f"{i}.png", ingest_images.encode(Image.fromarray(pixels), "PNG"))
    record_set = build(source, tmp_path / "set", "--shard_mib=1", "--validation_fraction=0.25")
    size = sum(part.bytes for split in record_set.splits.values() for part in split.shards) / 2**20
    assert len(record_set.split("train").shards) == round(size * 0.75)
    assert len(record_set.split("validation").shards) == 1


@pytest.mark.parametrize("price", ["-1", "inf", "nan"])
def test_a_price_is_a_number_from_zero(price):
    with pytest.raises(BuildError, match=r"--request_price=.*expected a price"):
        options.parse(["--input=x", "--output_dir=y", f"--request_price={price}"])
