"""The dashboard of the door: Grafana reads it, Prometheus answers it, and the answers are right."""

import enum
import itertools
import json
import shutil
import subprocess
import typing

import promql_parser
import pydantic
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from helpers.settings import PROJECT

WRITTEN = json.loads((PROJECT / "assets" / "door" / "dashboard.json").read_text())
PANELS = {panel["title"]: panel for panel in WRITTEN["panels"]}
QUERIES = [(title, target) for title, panel in PANELS.items() for target in panel["targets"]]
METRICS = {
    "door_requests_total": {"customer", "code"},
    "door_tokens_total": {"customer", "kind"},
    "door_cost_dollars_total": {"customer"},
    "door_requests_in_flight": {"customer"},
    "door_refused_total": {"customer", "reason"},
    "door_bad_keys_total": set(),
    "door_seconds_total": {"customer"},
    "door_first_token_seconds_bucket": {"le"},
}
VARIABLES = {"$customer": ".*", "$__rate_interval": "5m", "$__range": "10m"}


def asked(target: dict) -> str:
    """The expression as Prometheus gets it: Grafana fills in the variables."""
    expression = target["expr"]
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


# -- Grafana's schema -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read() -> Dashboard:
    """The dashboard as Grafana's own types; a panel's options and queries by its type, too."""
    register_default_plugins()
    return Dashboard.from_json(WRITTEN)


def missing(written, understood, where: str = "") -> list[str]:
    """What is written and was not understood: a field that Grafana's types do not have."""
    if isinstance(written, dict):
        return [
            lost
            for key, value in written.items()
            for lost in (
                missing(value, understood[key], f"{where}.{key}")
                if key in understood
                else [f"{where}.{key}"]
            )
        ]
    if isinstance(written, list):
        pairs = itertools.zip_longest(written, understood)
        return [lost for at, pair in enumerate(pairs) for lost in missing(*pair, f"{where}[{at}]")]
    return [] if written == understood else [f"{where}: {written} became {understood}"]


def unlike(value, where: str = "dashboard") -> list[str]:
    """Every value below that is not of the type that Grafana's schema gives to its field."""
    if isinstance(value, list):
        return [bad for at, one in enumerate(value) for bad in unlike(one, f"{where}[{at}]")]
    if isinstance(value, enum.Enum) or not type(value).__module__.startswith("grafana"):
        return []
    config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    found = []
    for name, kind in typing.get_type_hints(type(value)).items():
        one = getattr(value, name)
        try:
            pydantic.TypeAdapter(kind, config=config).validate_python(one)
        except pydantic.ValidationError as error:
            found.append(f"{where}.{name}: {error.errors()[0]['msg']}")
        found += unlike(one, f"{where}.{name}")
    return found


def test_grafana_knows_every_field(read):
    """A field with a slip in its name is ignored by Grafana, without a word."""
    assert missing(WRITTEN, json.loads(JSONEncoder().encode(read))) == []


def test_every_field_is_of_its_type(read):
    """Else the import fails, or a panel shows nothing."""
    assert unlike(read) == []
    assert {type(panel.options).__module__.split(".")[-1] for panel in read.panels} == {
        "timeseries",
        "bargauge",
    }  # read as what they are, not kept as they came


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("panels", 0, "gridPos", "w"), "wide"),
        (("panels", 0, "options", "legend", "placement"), "somewhere"),
        (("panels", 0, "fieldConfig", "defaults", "custom", "drawStyle"), "scribble"),
        (("panels", 0, "targets", 0, "range"), "yes please"),
        (("panels", 0, "titel"), "a slip"),
        (("panels", 0, "options", "legend", "colour"), "a slip"),
        (("templating", "list", 0, "hide"), 9),
    ],
)
def test_the_schema_refuses_slips(read, path, value):
    """Else the two tests above prove nothing."""
    wrong = json.loads(json.dumps(WRITTEN))
    place = wrong
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    again = Dashboard.from_json(wrong)
    assert unlike(again) + missing(wrong, json.loads(JSONEncoder().encode(again))) != []


def test_it_is_of_the_current_schema():
    """42 is the last of the classic ones: default of @grafana/schema 13.2.3 (npm, 2026-09-29)."""
    assert WRITTEN["schemaVersion"] == 42
    assert "id" not in WRITTEN  # Grafana's own number of it: an import with one may overwrite


# -- What a person sees -----------------------------------------------------------------------


def test_no_two_panels_overlap():
    """Grafana would push one of them away; its grid is 24 wide."""
    taken: dict[tuple[int, int], str] = {}
    for title, panel in PANELS.items():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), title) == title
    assert len({panel["id"] for panel in PANELS.values()}) == len(PANELS) == len(WRITTEN["panels"])


@pytest.mark.parametrize("title", PANELS)
def test_every_panel_explains_itself(title):
    """A title, a sentence, a unit that Grafana has, and a name for each line."""
    panel = PANELS[title]
    assert panel["description"].endswith(".")
    known = {value for name, value in vars(units).items() if name[0] != "_"}
    assert panel["fieldConfig"]["defaults"]["unit"] in known
    assert all(target["legendFormat"] for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_it_asks_the_prometheus_that_was_chosen():
    """No address and no name of somebody's own Prometheus: the reader picks it at the import."""
    datasource, customer = WRITTEN["templating"]["list"]
    assert (datasource["type"], datasource["query"]) == ("datasource", "prometheus")
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    targets = [target for _, target in QUERIES]
    assert all(place["datasource"] == chosen for place in [customer, *PANELS.values(), *targets])
    assert customer["query"]["query"] == "label_values(door_requests_total, customer)"


# -- Prometheus -------------------------------------------------------------------------------


def selectors(node) -> list:
    """Every selector below a node of the parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        return [node]
    if isinstance(node, promql_parser.MatrixSelector):
        return [node.vector_selector]
    inner = [getattr(node, name, None) for name in ("expr", "lhs", "rhs")]
    inner += getattr(node, "args", [])
    return [found for one in inner if one is not None for found in selectors(one)]


@pytest.mark.parametrize(("title", "target"), QUERIES)
def test_every_query_asks_for_what_the_door_counts(title, target):
    """It parses, and a slip in a name would show an empty panel for ever."""
    found = selectors(promql_parser.parse(asked(target)))
    assert found
    for selector in found:
        labels = {matcher.name for matcher in selector.matchers.matchers}
        assert labels <= METRICS[selector.name]


def test_every_metric_is_shown():
    """What the door counts is there to be looked at."""
    parsed = [promql_parser.parse(asked(target)) for _, target in QUERIES]
    assert {selector.name for one in parsed for selector in selectors(one)} == METRICS.keys()


# Every minute of an hour: anna's numbers and bob's, and what the panels have to say of them.
SERIES = {
    'door_requests_total{customer="anna", code="200"}': "0+6x60",
    'door_requests_total{customer="anna", code="429"}': "0+3x60",
    'door_requests_total{customer="bob", code="200"}': "0+30x60",
    'door_tokens_total{customer="anna", kind="input"}': "0+1200x60",
    'door_tokens_total{customer="anna", kind="output"}': "0+60x60",
    'door_cost_dollars_total{customer="anna"}': "0+0.5x60",
    'door_requests_in_flight{customer="anna"}': "3x60",
    'door_refused_total{customer="anna", reason="in_flight"}': "0+2x60",
    'door_refused_total{customer="bob", reason="in_flight"}': "0+1x60",
    "door_bad_keys_total": "0+120x60",
    'door_seconds_total{customer="anna"}': "0+18x60",
    'door_seconds_total{customer="bob"}': "0+15x60",
    'door_first_token_seconds_bucket{le="0.1"}': "0+90x60",
    'door_first_token_seconds_bucket{le="0.2"}': "0+100x60",
    'door_first_token_seconds_bucket{le="+Inf"}': "0+100x60",
}
ANNA, BOB = '{customer="anna"}', '{customer="bob"}'
SHOWN = [
    ("Requests a minute", {ANNA: 9, BOB: 30}),
    (
        "Tokens a second",
        {'{customer="anna", kind="input"}': 20, '{customer="anna", kind="output"}': 1},
    ),
    ("Dollars today", {ANNA: 5}),  # half a dollar a minute, in the ten of VARIABLES
    ("Requests in flight", {ANNA: 3}),
    ("Refusals a minute", {'{reason="in_flight"}': 3}),
    ("Time to first token", {"{}": 0.1 * 50 / 90}),
    ("Time to first token", {"{}": 0.1 + 0.1 * 5 / 10}),
    ("Bad keys a second", {"{}": 2}),
    ("Seconds a request", {ANNA: 2, BOB: 0.5}),
]


def test_prometheus_answers_what_the_panels_say(tmp_path):
    """Each number that a panel shows, worked out by hand and by Prometheus itself."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    expected = [
        {
            "expr": f"round(1e6 * ({asked(target)}))",  # promtool compares to the last bit
            "eval_time": "30m",
            "exp_samples": [{"labels": k, "value": round(1e6 * v)} for k, v in samples.items()],
        }
        for (title, target), (shown, samples) in zip(QUERIES, SHOWN, strict=True)
        if title == shown
    ]
    assert len(expected) == len(SHOWN)
    series = [{"series": name, "values": values} for name, values in SERIES.items()]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": expected}
    file = tmp_path / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
