"""What a real HAProxy counts when Oslo is full, and what CloudWatch is told of it."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

import edge
import settings
import spill_pressure
from render.spill_pressure import credentials_text, meter_content
from spill_pressure import Pressure, pressures, requests_by_level, serving_members
from tests.unit.samples import mesh_of, sample, sample_data
from tests.unit.test_edge_behaviour import OSLO, WEB, Door, await_condition, saturated

SCALING = {"kind": "spill-pressure", "target-percent": 10}
MakeDoor = Callable[..., Door]


@pytest.fixture
def make_door(tmp_path: Path) -> Iterator[MakeDoor]:
    """Make a door that counts; it is stopped after the test."""
    made: list[Door] = []

    def make(*, fleets: int = 1, **changes: Any) -> Door:
        door = Door(tmp_path, changes, fleets, False, SCALING)
        made.append(door)
        return door

    yield make
    for door in made:
        door.stop()


def described(door: Door) -> dict[str, Any]:
    """The settings that the door's unit would read."""
    content = meter_content(
        settings=door.settings, mesh=door.mesh, stack="test", credentials="none"
    )
    found: dict[str, Any] = json.loads(content["files"][0]["content"])
    return found


def levels(door: Door) -> dict[int, int]:
    """Requests so far, by how many of Oslo and the fleets were full."""
    return requests_by_level(door.ask(f"show table {described(door)['table']}"))


def measured(door: Door) -> list[Pressure]:
    """What would be told now."""
    backends = [fleet["backend"] for fleet in described(door)["fleets"]]
    return pressures(levels(door), serving_members(door.ask("show stat")), backends)


def test_a_request_that_waits_in_oslo_is_pressure_on_an_empty_fleet(make_door: MakeDoor) -> None:
    door = make_door()
    oslo = door.add_oslo()
    door.start()
    door.await_state(WEB, 0)
    assert measured(door) == [Pressure(0, 0)], "nobody came, so nothing is full"
    assert [door.get() for _ in range(2)] == [(200, OSLO)] * 2
    assert measured(door) == [Pressure(0, 0)]
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(door.get, "/held") for _ in range(2)]
        await_condition("Oslo was never full", lambda: len(oslo.requests) == 4)
        waiting += [pool.submit(door.get) for _ in range(4)]
        await_condition("nothing waited", lambda: sum(levels(door).values()) == 8)
        assert levels(door) == {0: 4, 1: 4}
        assert measured(door) == [Pressure(50, 50)]
        oslo.held.set()
        assert {one.result() for one in waiting} == {(200, OSLO)}


def test_the_share_stays_and_each_members_part_falls_while_the_fleet_grows(
    make_door: MakeDoor,
) -> None:
    door = make_door()
    oslo = door.add_oslo()
    door.add_member(0)
    door.start()
    door.await_state(WEB, 0)
    door.await_state("fleet-0-0-00", 2)
    with saturated(door, oslo, 2):
        assert {door.get() for _ in range(6)} == {(200, "fleet-0-0-00")}
        assert measured(door) == [Pressure(75, 75)]
        leaving = door.add_member(1)
        door.await_state("fleet-0-0-01", 2)
        assert measured(door) == [Pressure(75, 37.5)]
        leaving.health = 404
        door.await_state("fleet-0-0-01", 3)
        assert measured(door) == [Pressure(75, 75)], "who is leaving takes no part"


def test_an_oslo_that_is_down_is_full(make_door: MakeDoor) -> None:
    door = make_door()
    door.start()
    for server in (OSLO, WEB):
        door.await_state(server, 0)
    assert door.get()[0] == 503
    assert measured(door) == [Pressure(100, 100)]


def test_a_fleet_further_down_feels_only_what_the_first_has_no_place_for(
    make_door: MakeDoor,
) -> None:
    door = make_door(fleets=2)
    oslo, first = door.add_oslo(), door.add_member(0)
    door.start()
    door.await_state(WEB, 0)
    door.await_state("fleet-0-0-00", 2)
    with saturated(door, oslo, 2), saturated(door, first, 2), ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(door.get) for _ in range(4)]
        await_condition("nothing waited", lambda: sum(levels(door).values()) == 8)
        assert levels(door) == {0: 2, 1: 2, 2: 4}
        assert measured(door) == [Pressure(75, 75), Pressure(50, 50)]
        first.held.set()
        assert {one.result()[0] for one in waiting} == {200}


def test_what_no_fleet_may_serve_is_not_counted(make_door: MakeDoor) -> None:
    door = make_door(**{"oslo-only-paths": ["/account"]})
    door.start()
    for server in (OSLO, WEB):
        door.await_state(server, 0)
    assert door.get("/account")[0] == door.get("/%2561ccount")[0] == 503
    assert levels(door) == {}
    door.get("/public")
    assert levels(door) == {1: 1}


def test_answers_that_are_no_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="No such table"):
        requests_by_level("No such table\n")
    with pytest.raises(ValueError, match="Permission denied"):
        serving_members("Permission denied\n")


@pytest.fixture
def cloudwatch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """CloudWatch as moto plays it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "made-up")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield boto3.client("cloudwatch", region_name="eu-central-1")


def test_cloudwatch_gets_both_numbers_with_stack_and_fleet(
    make_door: MakeDoor, cloudwatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    door = make_door()
    door.start()
    for server in (OSLO, WEB):
        door.await_state(server, 0)
    door.get()
    assert spill_pressure.run(described(door), socket=door.directory / "admin.sock") == []
    found = cloudwatch.list_metrics(Namespace="FortressAndFleet")["Metrics"]
    assert {metric["MetricName"] for metric in found} == {"SpillPressure", "SpillPressurePerMember"}
    for metric in found:
        dimensions = {one["Name"]: one["Value"] for one in metric["Dimensions"]}
        assert dimensions == {"Stack": "test", "Fleet": "fleet-0"}
    assert "spill pressure of fleet-0: 100.0 %" in capsys.readouterr().out


def test_a_door_that_does_not_answer_is_no_number_but_an_error(
    tmp_path: Path, cloudwatch: Any
) -> None:
    told = {"table": "spill_pressure", "fleets": []}
    (problem,) = spill_pressure.run(told, socket=tmp_path / "absent.sock")
    assert "Nothing was told" in problem
    assert cloudwatch.list_metrics()["Metrics"] == []


def test_a_refusal_of_the_api_is_one_line_that_names_the_fleet(
    make_door: MakeDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = make_door()
    door.start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "made-up")
    # Nobody listens at the discard port.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    (problem,) = spill_pressure.run(described(door), socket=door.directory / "admin.sock")
    assert problem.startswith("spill pressure of fleet-0 was not told: Could not connect")


def test_only_the_key_is_for_root_alone() -> None:
    data = sample_data()
    data["fleets"]["frankfurt"]["scaling"] = SCALING
    of = settings.validate(data)
    content = meter_content(
        settings=of, mesh=mesh_of(of), stack="test", credentials=credentials_text("id", "word")
    )
    assert [file["path"] for file in content["files"]] == content["paths"]
    (key,) = (file for file in content["files"] if "word" in file["content"])
    assert (key["path"], key["mode"]) == ("/etc/fortress/spill-pressure.credentials", "0600")


def test_without_a_fleet_that_wants_it_key_and_timer_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(edge, "run", commands.append)
    content = meter_content(settings=sample(), mesh=mesh_of(sample()), stack="test", credentials="")
    assert content["files"] == []
    paths = [tmp_path / Path(path).name for path in content["paths"]]
    content["paths"] = [str(path) for path in paths]
    assert edge.apply_meter(content) == []
    for path in paths:
        path.touch()
    assert len(edge.apply_meter(content)) == 4
    assert not any(path.exists() for path in paths)
    assert commands[0] == ["systemctl", "disable", "--now", "--quiet", content["timer"]]
