"""The command line scripts/fleet: what a person asks for, in which order, what is shown."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from plan.mesh import plan_mesh
from plan.names import fleet_names
from scripts.fleet_tool import core, stack
from scripts.fleet_tool.cloud import Cloud, require_credentials
from scripts.fleet_tool.orphans import (
    Orphan,
    Place,
    claims_without_instance,
    instances_without_claim,
    left_behind,
    removal_order,
)
from scripts.fleet_tool.stack import Deployed, Stack, ToolError
from scripts.fleet_tool.status import (
    FleetStatus,
    age_text,
    fleet_rows,
    fleet_text,
    in_use,
    table,
)
from settings import PROJECT, FleetSettings, SettingsError

DONE = 0
ORPHANS = 1
USAGE = 2
INCOMPLETE = 3

EXIT_STATUS = """\
exit status:
  0  all was looked at, and there is no orphan (left)
  1  there are orphans
  2  the command line is not understood
  3  something could not be looked at or removed; standard error says what

AWS credentials come from the environment, and `pulumi` is asked about the stack: run this where
`pulumi up` runs.
"""
STATUS = """\
Shows every slot that is in use: who holds it since when, what EC2 and the Auto Scaling Group say of
the instance, the age of its last WireGuard handshake, the tunnel's MTU, and the door's state and
count of requests (since HAProxy last began). A dash is what nobody said.
"""
ORPHANS_TEXT = """\
Lists what nobody accounts for: instances that hold no slot although their time to join is over,
claims whose instance is gone, and groups, network interfaces, addresses, volumes, launch templates,
tables, parameters and log groups that bear the stack's tags or name but are not in its state.
Prices are list prices in US dollars without tax; a dash means that none is documented here.
"""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of one search."""

    orphans: tuple[Orphan, ...]
    problems: tuple[str, ...]
    deployed: Deployed


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; a failure is one message on standard error.

    Returns:
        The exit status, as --help lists them.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if wrong := _contradiction(options):
        parser.error(wrong)
    try:
        chosen = stack.load(options.stack)
        if options.command == "status":
            return status(chosen, everything=options.all, as_json=options.json)
        require_credentials()
        places = _places(chosen, options.region)
        if options.reap:
            return reap(chosen, places, ask=not options.yes)
        return orphans(chosen, places, as_json=options.json)
    except (ToolError, SettingsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return INCOMPLETE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/fleet",
        description="What the fleets do now, and what they left behind.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--stack", help="as for `pulumi --stack`; else the selected one")
    one = commands.add_parser(
        "status", parents=[common], help="slots and who is in them", description=STATUS
    )
    one.add_argument("--all", action="store_true", help="also slots that are free")
    one.add_argument("--json", action="store_true", help="for programs")
    two = commands.add_parser(
        "orphans",
        parents=[common],
        help="what nobody accounts for",
        description=ORPHANS_TEXT,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    two.add_argument(
        "--region",
        action="append",
        default=[],
        help="look there too, as after a fleet was taken out of the settings (repeatable)",
    )
    two.add_argument("--json", action="store_true", help="for programs; not with --reap")
    two.add_argument("--reap", action="store_true", help="remove them, after asking")
    two.add_argument("--yes", action="store_true", help="with --reap: do not ask")
    return parser


def _contradiction(options: argparse.Namespace) -> str | None:
    if options.command == "orphans" and options.yes and not options.reap:
        return "--yes answers the question of --reap: give both"
    if options.command == "orphans" and options.json and options.reap:
        return "--json only lists: leave it or --reap out"
    return None


def status(chosen: Stack, *, everything: bool, as_json: bool) -> int:
    """Show each fleet's slots; what can't be asked is left out and said."""
    outputs = chosen.outputs()
    groups: dict[str, str] = outputs.get("fleets") or {}
    seen_by_core = core.ask(chosen.machines())
    problems = list(seen_by_core.problems)
    plan = plan_mesh(chosen.settings.mesh, (), chosen.settings.fleets)
    fleets = []
    for fleet in plan.fleets:
        of = chosen.settings.fleets[fleet.name]
        claims = instances = None
        if fleet.name in groups:
            cloud = _cloud(chosen, _place(of))
            try:
                seen = cloud.instances()
                instances = {one.id: one for one in seen.values() if one.fleet == fleet.name}
                claims = cloud.claims(_table(chosen, fleet.name, of))
            except ToolError as error:
                problems.append(str(error))
        else:
            problems.append(
                f"fleet {fleet.name} is in the settings of stack {chosen.reference} but not among "
                "what it built: `pulumi up` builds it, or another stack holds it"
            )
        # What is applied may be older than the settings.
        slots = [
            (name, text.split()[0])
            for name, text in (outputs.get("slots") or {}).items()
            if name.rsplit("-", 2)[0] == fleet.name
        ] or [(slot.name, str(slot.address)) for slot in fleet.slots]
        rows = fleet_rows(slots, claims, instances, seen_by_core, now=time.time())
        fleets.append(
            FleetStatus(
                name=fleet.name,
                region=of.region,
                group=groups.get(fleet.name),
                slots=len(slots),
                claimed=None if claims is None else len(claims),
                rows=tuple(row for row in rows if everything or in_use(row)),
            )
        )
    if as_json:
        document = {
            "stack": chosen.reference,
            "fleets": [asdict(one) for one in fleets],
            "problems": problems,
        }
        print(json.dumps(document, indent=2))
    else:
        print("\n\n".join(map(fleet_text, fleets)) or "the settings have no fleet")
    return _say(problems)


def orphans(chosen: Stack, places: Sequence[Place], *, as_json: bool) -> int:
    """List what nobody accounts for."""
    found = find(chosen, places)
    if as_json:
        listed = [asdict(one) | {"place": one.place.region} for one in found.orphans]
        print(
            json.dumps(
                {"stack": chosen.reference, "orphans": listed, "problems": found.problems}, indent=2
            )
        )
    else:
        _show_orphans(found)
    incomplete = _say(found.problems)
    return ORPHANS if found.orphans else incomplete


def reap(chosen: Stack, places: Sequence[Place], *, ask: bool) -> int:
    """Remove orphans after a person has seen them, and only those that still are orphans then.

    Raises:
        ToolError: when the engine is at work on the stack, or nobody agreed.
    """
    found = _settled(chosen, places)
    _show_orphans(found)
    _say(found.problems)
    removable = [one for one in found.orphans if one.kept is None]
    if not removable:
        return ORPHANS if found.orphans else (INCOMPLETE if found.problems else DONE)
    if ask:
        _agree(chosen, found, len(removable))
        # Reading takes minutes, in which a slow instance may have claimed its slot.
        still = {(one.kind, one.id, one.owner) for one in _settled(chosen, places).orphans}
        removable = [one for one in removable if (one.kind, one.id, one.owner) in still]
    clouds = {place: _cloud(chosen, place) for place in places}
    problems = []
    for one in removal_order(removable):
        try:
            clouds[one.place].remove(one)
        except ToolError as error:
            problems.append(str(error))
        else:
            print(f"removed {one.kind} {one.id}")
    _say(problems)
    if problems or found.problems:
        return INCOMPLETE
    return ORPHANS if len(removable) < len(found.orphans) else DONE


def _agree(chosen: Stack, found: Found, number: int) -> None:
    # Whoever is logged in to another backend sees an empty state of the same name.
    question = (
        f"The state of {chosen.reference} holds {len(found.deployed.ids)} resources. "
        f"Remove {number} of the above? Type the stack's name ({chosen.name}) to go on: "
    )
    try:
        answer = input(question)
    except EOFError:
        answer = ""
    if answer.strip() != chosen.name:
        message = f"nothing was removed: the answer was not {chosen.name}. In scripts, give --yes"
        raise ToolError(message)


def _settled(chosen: Stack, places: Sequence[Place]) -> Found:
    found = find(chosen, places)
    if found.deployed.pending_operations:
        message = (
            f"stack {chosen.reference} has {found.deployed.pending_operations} operations under "
            "way, so what looks left behind may be about to be recorded. Let `pulumi up` or "
            "`destroy` end; after a crash, `pulumi refresh` settles it"
        )
        raise ToolError(message)
    return found


def find(chosen: Stack, places: Sequence[Place]) -> Found:
    """Search all places.

    The order of reading is what keeps living things out: AWS first and the engine's state after,
    so that what was just made is in it; instances first and claims after, so that who has just
    claimed counts.
    """
    clouds = [_cloud(chosen, place) for place in places]
    problems: list[str] = []
    things, seen = [], []
    for cloud in clouds:
        listed, unlisted = cloud.things()
        things += listed
        problems += unlisted
        try:
            seen.append((cloud, cloud.instances()))
        except ToolError as error:
            problems.append(str(error))
    deployed = chosen.deployed()
    now = time.time()
    orphans = left_behind(things, deployed.ids, now=now)
    for cloud, instances in seen:
        names = {one.fleet for one in instances.values()} | {
            name for name, fleet in chosen.settings.fleets.items() if _place(fleet) == cloud.place
        }
        for name in sorted(names):
            fleet = chosen.settings.fleets.get(name)
            table_name = _table(chosen, name, fleet)
            try:
                # A table that the engine has given up is itself left behind, and its claims bind
                # nobody.
                claims = cloud.claims(table_name) if table_name in deployed.ids else {}
                states = cloud.states(sorted({claim.instance for claim in claims.values()}))
            except ToolError as error:
                problems.append(str(error))
                continue
            orphans += instances_without_claim(
                {one.id: one for one in instances.values() if one.fleet == name},
                claims,
                cloud.place,
                join_seconds=fleet.join_seconds
                if fleet
                else FleetSettings.model_fields["join_seconds"].default,
                now=now,
            )
            orphans += claims_without_instance(
                claims, states, cloud.place, fleet=name, table=table_name, now=now
            )
    return Found(
        orphans=tuple(removal_order(orphans)),
        problems=tuple(problems),
        deployed=deployed,
    )


def _show_orphans(found: Found) -> None:
    if not found.orphans:
        print("no orphans among what could be looked at" if found.problems else "no orphans")
        return
    lines = [
        [
            one.kind,
            one.id,
            one.fleet or "-",
            one.place.region,
            age_text(one.age_seconds),
            "-" if one.monthly_usd is None else f"{one.monthly_usd:.2f}",
            one.why if one.kept is None else f"{one.why}; KEPT: {one.kept}",
        ]
        for one in found.orphans
    ]
    print(table(["kind", "id", "fleet", "region", "age", "$/month", "why"], lines))


def _say(problems: Sequence[str]) -> int:
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return INCOMPLETE if problems else DONE


def _place(fleet: FleetSettings) -> Place:
    return Place(region=fleet.region, endpoint_url=fleet.endpoint_url)


def _places(chosen: Stack, further: Sequence[str]) -> list[Place]:
    """The regions of the settings' fleets and those that were asked for, each once."""
    own = [_place(fleet) for fleet in chosen.settings.fleets.values()]
    regions = {place.region for place in own}
    return list(dict.fromkeys([*own, *(Place(region=r) for r in further if r not in regions)]))


def _cloud(chosen: Stack, place: Place) -> Cloud:
    return Cloud(place, project=PROJECT, stack=chosen.name)


def _table(chosen: Stack, fleet: str, settings: FleetSettings | None) -> str:
    generation = settings.generation if settings else 0
    return fleet_names(PROJECT, chosen.name, fleet, generation).claim_table


if __name__ == "__main__":
    sys.exit(main())
