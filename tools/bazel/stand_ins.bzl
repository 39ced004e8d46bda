"""Small local repositories in place of those that MODULE.bazel fetches, for a Bazel without network: see WORKSPACE."""

_PYTHON = """
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

py_runtime(name = "runtime", interpreter_path = "{}", python_version = "PY3")
py_runtime_pair(name = "pair", py3_runtime = ":runtime")
toolchain(name = "toolchain", toolchain = ":pair", toolchain_type = "@bazel_tools//tools/python:toolchain_type")
"""

def _native_rules(context):
    definitions = ["%s = native.%s" % (rule, rule) for rule in context.attr.rules]
    context.file(context.attr.package + "/BUILD")
    context.file(context.attr.package + "/defs.bzl", "\n".join(definitions))

native_rules = repository_rule(
    _native_rules,
    doc = "A repository whose `package` holds Bazel's native rules of these names.",
    attrs = {"package": attr.string(), "rules": attr.string_list()},
)

def _run(context, arguments):
    result = context.execute(arguments)
    if result.return_code:
        fail("%s failed:\n%s" % (" ".join([str(argument) for argument in arguments]), result.stderr))

def _packages(context):
    python = context.os.environ.get("PYTHON")
    if not python:
        fail("Name the Python that holds the packages: `make bazel-test`, or --repo_env=PYTHON=/path/to/python.")
    script = Label("//:tools/bazel/distributions.py")
    _run(context, [python, context.path(script), context.path(Label("//:requirements.txt")), "."])

    # An environment without packages of its own: what a target does not declare, it cannot import.
    _run(context, [python, "-m", "venv", "--without-pip", "python"])
    context.file("toolchain/BUILD", _PYTHON.format(context.path("python/bin/python")))

packages = repository_rule(
    _packages,
    doc = "What pip.parse makes of requirements.txt, from the packages of the Python environment $PYTHON.",
    environ = ["PYTHON"],
)
