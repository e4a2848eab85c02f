"""Counts what members ask of AWS when they join, serve and leave, and what AWS charges for it.

The members' own programs run against moto, on pretended machines whose clocks move only when
somebody waits, so that an hour of serving takes seconds. A fleet fills member by member, serves for
an hour, and leaves.
"""

import argparse
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, Final

from matplotlib.figure import Figure

from benchmarks import measuring
from benchmarks.pretended_aws import REGION, make_claim_table, pretended_aws
from cloud import Cloud
from member import Member
from metadata import Metadata
from plan.derivation import encode, fleet_seed
from tests.unit.samples import SEED
from tests.unit.test_member import Machine, settings_of

HOUR_SECONDS: Final = 3600
JOINS_PRICED: Final = 1000
SHOWN_SIZES: Final = (1, 10, 100)

# List prices of eu-central-1 without free tiers and taxes, to be checked before they are relied on.
WRITE_UNIT_USD: Final = 0.7625e-6
READ_UNIT_USD: Final = 0.1525e-6
"""DynamoDB on demand, per request unit: aws.amazon.com/dynamodb/pricing/on-demand, as a public copy
of AWS's price list of 2026-08-15 quotes it."""
KMS_REQUEST_USD: Final = 0.03 / 10_000
"""A request for a symmetric key, AWS's own keys included: aws.amazon.com/kms/pricing, as quoted in
2026. The first 20,000 a month are free."""
# Requests to EC2, Auto Scaling and, for standard parameters, SSM are free: aws.amazon.com/ec2,
# /ec2/autoscaling and /systems-manager/pricing.

READ_UNIT_BYTES: Final = 4096
"""Of a consistent read. A Scan's items count together, rounded up (DynamoDB developer guide, "Read
and write operations"). A write unit is 1 KiB, more than any item here; a lost put is a unit too."""
WRITES: Final = ("PutItem", "UpdateItem", "DeleteItem")
SECURE_PARAMETERS: Final = 2
"""In a member's one GetParameters. SSM decrypts each with a request to KMS at the account's expense
(Systems Manager user guide, "SecureString"). moto makes none, so these are known, not counted."""

ENDINGS: Final = ("terminated by its group", "shut down", "reboot")
"""The members' own words for why they leave; they take turns."""


class OneMember:
    """A member with a pretended machine and metadata service, and the real way to AWS.

    Parameters:
        clients: of `pretended_aws`.
        ending: how its hour of serving ends; one of `ENDINGS`.
    """

    def __init__(self, clients: Mapping[str, Any], instance: str, slots: int, ending: str) -> None:
        self.metadata_requests = 0
        self._machine = Machine([])
        self._machine.jobs = "1 reboot.target start waiting" if ending == "reboot" else ""
        self._ending = ending
        self._is_ending = False
        settings = settings_of(slot_count=slots)
        cloud = Cloud(
            region=REGION,
            endpoint_url=None,
            table=settings.claim_table,
            instance=instance,
            system=self._machine,
            clients=clients,
        )
        self.member = Member(settings, self._machine, Metadata(self._answer), cloud)

    def _answer(self, method: str, path: str, _headers: Mapping[str, str]) -> tuple[int, str]:
        self.metadata_requests += 1
        if method == "PUT":
            return 200, "token"
        if path.endswith("autoscaling/target-lifecycle-state"):
            return 200, "Terminated" if self._is_told_to_end else "InService"
        return 404, ""

    @property
    def _is_told_to_end(self) -> bool:
        return self._is_ending and self._ending == ENDINGS[0]

    def serve(self, seconds: float) -> str:
        """Watch until the end comes after that many seconds; return the reason to leave."""
        end = self._machine.now + seconds

        def check(now: float) -> None:
            self._is_ending = now >= end
            if self._is_ending and not self._is_told_to_end:
                self._machine.request_stop()

        self._machine.on_wait = check
        return self.member.watch()


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claim_cost", description=__doc__)
    parser.add_argument("--members", type=int, default=SHOWN_SIZES[-1], metavar="N")
    options = parser.parse_args()

    said = io.StringIO()
    with redirect_stdout(said):
        result = _measured(options.members)
    # Members go on after a refused request, which would leave out what follows it.
    troubles = [
        line for line in said.getvalue().splitlines() if "going on:" in line or "again" in line
    ]
    if troubles:
        message = f"a member was refused something, so the counts are wrong: {troubles[0]}"
        raise RuntimeError(message)
    joins = result["joins"]
    for size in _shown(joins):
        join = joins[size - 1]
        print(
            f"join as member {size}: {_listed(join['requests'])}; {join['read_units']} read units; "
            f"{join['usd'] * JOINS_PRICED:.4f} USD per {JOINS_PRICED} joins"
        )
    for reason, leave in result["leaves"].items():
        print(
            f"leave, {reason}: {_listed(leave['requests'])}; {leave['usd'] * 1000:.4f} USD per 1000"
        )
    hour = result["quiet_hour"]
    print(
        f"{hour['members']} members serve for an hour: {hour['requests_to_aws']} requests to AWS, "
        f"{hour['metadata_requests']} to their own metadata services, 0 USD"
    )
    measuring.keep("claim_cost", result, _plot(result), in_lab=False)


def _measured(size: int) -> dict[str, Any]:
    """A fleet's life, from the first join to the last leave."""
    counted: Counter[str] = Counter()

    def tell(service: str, operation: str) -> None:
        counted[f"{service} {operation}"] += 1

    with pretended_aws(tell) as clients:
        settings = settings_of()
        make_claim_table(clients["dynamodb"], settings.claim_table)
        for name, value in (
            (settings.seed_parameter, encode(fleet_seed(SEED, "frankfurt", 0))),
            (settings.workload_parameter, "PGPASSWORD=made-up\n"),
        ):
            clients["ssm"].put_parameter(Name=name, Value=value, Type="SecureString")
        # moto knows this image.
        instances = clients["ec2"].run_instances(
            ImageId="ami-12c6146b", MinCount=size, MaxCount=size
        )["Instances"]
        # A power of two as in every fleet.
        slots = 2 ** math.ceil(math.log2(size))
        members = [
            OneMember(clients, instance["InstanceId"], slots, ENDINGS[number % len(ENDINGS)])
            for number, instance in enumerate(instances)
        ]

        joins = []
        for number, one in enumerate(members):
            items = clients["dynamodb"].scan(TableName=settings.claim_table)["Items"]
            units = read_units(items)
            counted.clear()
            one.member.join()
            joins.append(_priced(counted, units) | {"members": number + 1, "read_units": units})

        counted.clear()
        before = sum(one.metadata_requests for one in members)
        reasons = [one.serve(HOUR_SECONDS) for one in members]
        hour = {
            "members": size,
            "requests_to_aws": counted.total(),
            "metadata_requests": sum(one.metadata_requests for one in members) - before,
        }

        leaves = {}
        for one, reason in zip(members, reasons, strict=True):
            counted.clear()
            one.member.leave(reason, serving=True)
            leaves[reason] = _priced(counted, 0)
    return {
        "prices_usd": {
            "write_unit": WRITE_UNIT_USD,
            "read_unit": READ_UNIT_USD,
            "kms_request": KMS_REQUEST_USD,
        },
        "joins": joins,
        "quiet_hour": hour,
        "leaves": leaves,
    }


def read_units(items: Sequence[Mapping[str, Mapping[str, str]]]) -> int:
    """Read units of a consistent Scan of these items, in DynamoDB's JSON."""
    return max(1, math.ceil(sum(map(item_bytes, items)) / READ_UNIT_BYTES))


def item_bytes(item: Mapping[str, Mapping[str, str]]) -> int:
    """Size of an item of strings and natural numbers as DynamoDB counts it.

    Names and strings count in UTF-8; a number has a byte for two digits and one more (developer
    guide, "Item sizes and formats").
    """
    size = 0
    for name, typed in item.items():
        for kind, value in typed.items():
            size += len(name.encode())
            size += math.ceil(len(value) / 2) + 1 if kind == "N" else len(value.encode())
    return size


def _priced(counted: Counter[str], units: int) -> dict[str, Any]:
    """Requests and their price; `units` are read units of one Scan."""
    usd = {
        "writes": WRITE_UNIT_USD * sum(counted[f"dynamodb {operation}"] for operation in WRITES),
        "reads": READ_UNIT_USD * units * counted["dynamodb Scan"],
        "kms": KMS_REQUEST_USD * SECURE_PARAMETERS * counted["ssm GetParameters"],
    }
    return {
        "requests": dict(counted),
        "usd_by_kind": {kind: float(f"{price:.6g}") for kind, price in usd.items()},
        "usd": float(f"{sum(usd.values()):.6g}"),
    }


def _shown(joins: Sequence[Mapping[str, Any]]) -> list[int]:
    return [size for size in SHOWN_SIZES if size <= len(joins)]


def _listed(requests: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in requests.items()) or "nothing"


def _plot(result: Mapping[str, Any]) -> Figure:
    joins, leaves, hour = result["joins"], result["leaves"], result["quiet_hour"]
    bars: dict[str, Mapping[str, int]] = {
        f"join as member {size}": joins[size - 1]["requests"] for size in _shown(joins)
    }
    bars |= {f"leave: {reason}": leave["requests"] for reason, leave in leaves.items()}
    bars[f"{hour['members']} members\nfor a quiet hour"] = {"": hour["requests_to_aws"]}
    kinds = sorted({what for requests in bars.values() for what in requests if what})

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    requests, price = figure.subplots(1, 2)
    places = range(len(bars))
    left = [0] * len(bars)
    for kind in kinds:
        widths = [one.get(kind, 0) for one in bars.values()]
        requests.barh(places, widths, left=left, label=kind, edgecolor="white")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, one in zip(places, bars.values(), strict=True):
        requests.annotate(str(sum(one.values())), (sum(one.values()) + 0.1, place), va="center")
    requests.set_yticks(places, list(bars))
    requests.invert_yaxis()
    requests.set_xlabel("requests, botocore's own repetitions included")
    requests.set_xlim(0, max(left) + 1)
    requests.set_title("Requests to AWS: a member joins, leaves, and all serve")
    requests.legend(loc="lower right", fontsize="small")

    price.stackplot(
        [join["members"] for join in joins],
        [
            [JOINS_PRICED * join["usd_by_kind"][kind] for join in joins]
            for kind in ("kms", "writes", "reads")
        ],
        labels=["KMS: 2 decryptions (not counted)", "DynamoDB: writes", "DynamoDB: the Scan"],
        step="pre",
    )
    price.set_xlabel("members after the join")
    price.set_ylabel(f"USD per {JOINS_PRICED} joins")
    price.set_ylim(0, 1.35 * JOINS_PRICED * joins[-1]["usd"])
    price.set_xlim(1, max(2, len(joins)))
    price.set_title("List price of joining, eu-central-1, without free tiers")
    price.legend(loc="upper left", fontsize="small", reverse=True)
    return figure


if __name__ == "__main__":
    measuring.run_as_program(main)
