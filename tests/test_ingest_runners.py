"""The same build on other runners: the same bytes, and no need of the repository on the workers."""

import os
import subprocess
import sys
import time

import apache_beam as beam
import pytest
from apache_beam.coders import FastPrimitivesCoder
from apache_beam.options.pipeline_options import PortableOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.transforms.environments import DockerEnvironment

from beam import finalize, hashing, ingest, launch, options, planning, shards, worker_code
from beam.duplicates import HashedImage, buckets
from beam.errors import BuildError
from beam.sources import registry
from tests import ingest_images
from tests.source_listing import stream

FLAGS = ["--shards=3", "--validation_fraction=0.2", "--duplicates=keep_first", "--classes={classes}"]
WORKER = f"{sys.executable} -m apache_beam.runners.worker.sdk_worker_main"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Good images, a copy of one, and a broken one."""
    root = ingest_images.folder_tree(tmp_path_factory.mktemp("runners") / "tree", images=30, classes=3)
    ingest_images.write(f"{root}/class_0/copy.jpg", ingest_images.encode(ingest_images.picture(6)))
    ingest_images.write(f"{root}/class_1/broken.jpg", b"words")
    with open(os.path.join(os.path.dirname(root), "classes.txt"), "w") as file:
        file.write("class_2\nclass_0\nclass_1\n")
    return root


def build(tree, output, *flags) -> dict[str, bytes]:
    """Runs the job; returns the files it wrote."""
    ours = [flag.format(classes=os.path.join(os.path.dirname(tree), "classes.txt")) for flag in FLAGS]
    assert launch.main([f"--input={tree}", f"--output_dir={output}", *ours, *flags]) == 0
    return ingest_images.contents(output)


@pytest.fixture(scope="module")
def expected(tree, tmp_path_factory):
    """What the runner in this process writes."""
    return build(tree, tmp_path_factory.mktemp("runners") / "set")


def test_threads_write_the_same_bytes(tree, expected, tmp_path):
    flags = ["--direct_running_mode=multi_threading", "--direct_num_workers=3"]
    assert build(tree, tmp_path / "set", *flags) == expected


@pytest.mark.slow
def test_processes_write_the_same_bytes(tree, expected, tmp_path):
    flags = ["--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    assert build(tree, tmp_path / "set", *flags) == expected


@pytest.fixture
def installed(tmp_path):
    """A folder into which pip has installed what the job sends, as Beam's containers do when they start."""
    pytest.importorskip("pip", reason="Bazel's Python has only the packages that a target declares")
    wheel = worker_code.wheel(str(tmp_path))
    target = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", f"--target={target}", wheel]
    subprocess.run(command, check=True)
    return target


@pytest.fixture
def job_service(tmp_path, installed):
    """Beam's own job service, whose workers find the project's code in `installed` alone."""
    port_file = tmp_path / "port"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", "-p", "0"]
    with open(tmp_path / "service.log", "w") as log:
        process = subprocess.Popen(
            [*command, "--port_file", str(port_file)], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    deadline = time.monotonic() + 60
    while not port_file.exists() or not port_file.read_text().strip():
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "service.log").read_text()
        time.sleep(0.2)
    yield f"localhost:{port_file.read_text().strip()}"
    process.terminate()
    process.wait(30)


@pytest.mark.slow
def test_a_portable_runner_whose_workers_lack_the_repository(tree, expected, job_service, tmp_path, capsys):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tmp_path / "elsewhere").mkdir()
    tried = subprocess.run(
        [sys.executable, "-c", "import beam.ingest"],
        cwd=tmp_path / "elsewhere",
        env=environment,
        capture_output=True,
        check=False,
    )
    assert tried.returncode != 0, "the workers' Python finds the repository by itself: this test shows nothing"
    flags = [
        "--runner=PortableRunner",
        f"--job_endpoint={job_service}",
        "--environment_type=beam:env:harness_subprocess_python:v1",
        f"--environment_config={WORKER}",
    ]
    assert build(tree, tmp_path / "set", *flags) == expected
    ingest_images.write(tmp_path / "evaluation" / "class_0" / "x.jpg", ingest_images.encode(ingest_images.picture(7)))
    assert launch.main([f"--input={tmp_path}/evaluation", f"--output_dir={tmp_path}/reference", "--shards=1"]) == 0
    against = [f"--remove_duplicates_of={path}" for path in (tmp_path / "reference", _hashes(tmp_path))]
    without = build(tree, tmp_path / "here", *against)
    assert b"evaluation_duplicate" in without["rejected.jsonl"]
    assert build(tree, tmp_path / "there", *against, *flags) == without
    assert launch.main([f"--input={tree}", f"--output_dir={tmp_path}/bad", "--validation_examples=99", *flags]) == 1
    assert "build_tfrecords.py: --validation_examples=99: the source lists only 32" in capsys.readouterr().err


def test_what_is_shuffled_for_each_image_names_no_class(tree, tmp_path):
    """Plain tuples: they take a third less than pickles of their classes."""
    (hashes,) = hashing.hash_part(hashing.EvaluationPart(_hashes(tmp_path)))
    image = HashedImage._make(hashes)
    placed = ingest.to_shard(stream(tree)[0], spec(tmp_path), {f"class_{i}": i for i in range(3)})
    for value in (hashes, ingest.by_hash(image), *buckets(image, 1), placed):
        assert b"beam" not in FastPrimitivesCoder().encode(value)


def spec(folder) -> shards.BuildSpec:
    return shards.BuildSpec("images", str(folder), "single", options.ImageSettings(), {"train": 1})


def test_a_name_that_a_runner_loses_fails_the_build(tree, tmp_path):
    examples, task = stream(tree), spec(tmp_path)
    indices = {f"class_{i}": i for i in range(3)}
    placed = [ingest.to_shard(example, task, indices)[1] for example in examples]
    result = ingest.shard_summary((("train", 0), {"examples": placed[1:], "pairs": []}), task, None)
    with pytest.raises(BuildError, match="32 images were listed, but 31 came to the shards"):
        finalize.finalize(planning.Totals({"train": (len(examples), 0, 0)}, set()), task, indices, True, [result], {})
    assert not (tmp_path / "manifest.json").exists()


DATAFLOW = [
    "--runner=DataflowRunner",
    "--project=project-1",
    "--region=europe-west4",
    "--temp_location=gs://bucket/temp",
    "--staging_location=gs://bucket/staging",
    "--sdk_container_image=region-docker.pkg.dev/project-1/images/ingest:1",
]


def test_the_dataflow_job_graph(tree, tmp_path):
    asked = [f"--input={tree}", "--output_dir=gs://bucket/set", "--validation_examples=5", "--shard_mib=200"]
    parsed = options.parse([*asked, *DATAFLOW, "--duplicates=drop", f"--remove_duplicates_of={_hashes(tmp_path)}"])
    worker_code.send(parsed, str(tmp_path))
    pipeline = beam.Pipeline(options=parsed)
    build = parsed.view_as(options.BuildOptions)
    ingest.build(pipeline, build, registry.open_source(build.input), build.output_dir)
    docker = DockerEnvironment.from_options(parsed.view_as(PortableOptions))
    graph = pipeline.to_runner_api(default_environment=docker)
    (environment,) = [e for e in graph.components.environments.values() if e.urn]
    assert environment.urn == "beam:env:docker:v1"
    staged = [
        beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(d.role_payload) for d in environment.dependencies
    ]
    assert {"extra_packages.txt", "nfnet_pipeline-0.1.0-py3-none-any.whl"} <= {file.staged_name for file in staged}
    names = {t.unique_name for t in graph.components.transforms.values()}
    stages = {
        "Source",
        "List",
        "Totals",
        "Spec",
        "Shuffle names to hash",
        "Near pairs",
        "Shuffle names",
        "Write",
        "Finalize",
    }
    assert stages <= names
    for transform in graph.components.transforms.values():
        if transform.spec.urn == "beam:transform:pardo:v1":
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            assert not payload.state_specs and not payload.timer_family_specs
    assert graph.ByteSize() < 9 << 20, "Dataflow takes job graphs of up to 10 MB"


def _hashes(folder) -> str:
    path = folder / "hashes.csv"
    path.write_text(f"key,content,perceptual\na.jpg,{'0' * 32},{'0' * 16}\n")
    return str(path)


def test_dataflow_says_what_is_missing(tree, tmp_path, capsys):
    without = [flag for flag in DATAFLOW if not flag.startswith("--project")]
    assert launch.main([f"--input={tree}", f"--output_dir={tmp_path}/set", *without]) == 1
    message = capsys.readouterr().err
    assert "project" in message and "Traceback" not in message


def test_a_template_of_the_job_is_refused(tree, tmp_path, capsys):
    flags = [*DATAFLOW, "--template_location=gs://bucket/template"]
    assert launch.main([f"--input={tree}", f"--output_dir={tmp_path}/set", *flags]) == 1
    assert "--template_location asks for a template" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_pip_installs_the_code_and_nothing_else(installed):
    files = {path.relative_to(installed).as_posix() for path in installed.rglob("*.py")}
    assert {"beam/__init__.py", "beam/sources/tar.py", "pipeline/data/record.py"} <= files
    assert {path.name.split("-")[0] for path in installed.iterdir()} == {"beam", "pipeline", "nfnet_pipeline"}


@pytest.mark.parametrize(
    "flags",
    [
        ["--runner=FlinkRunner", "--flink_master=host:8081", "--environment_type=DOCKER", "--parallelism=256"],
        ["--runner=SparkRunner", "--spark_master_url=spark://host:7077", "--environment_type=DOCKER"],
        ["--runner=PortableRunner", "--job_endpoint=host:8099", "--environment_config=image"],
        DATAFLOW,
    ],
)
def test_the_flags_of_every_runner_work_beside_ours_and_mistyped_ones_do_not(flags, capsys):
    ours = ["--input=x", "--output_dir=y"]
    assert options.parse([*ours, *flags]).view_as(options.BuildOptions).input == "x"
    mistyped = flags[1].replace("=", "s=", 1)
    with pytest.raises(SystemExit) as stop:
        options.parse([*ours, flags[0], mistyped])
    assert stop.value.code == 2
    assert flags[1].split("=")[0] in capsys.readouterr().err
