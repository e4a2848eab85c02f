"""What a member asks of AWS, in its own words, with every refusal as one `FailureError`.

Clients are made when first needed, because each costs a slow machine a second. It refuses to retry
beyond what botocore does by itself: whoever calls knows how long there is.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import boto3
import botocore.config
import botocore.exceptions

from claims import ClaimTable, claim_slot, instance_states
from system import FailureError, System

CONFIGURATION = botocore.config.Config(
    connect_timeout=3, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 4}
)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        message = f"{what}: {error}"
        raise FailureError(message) from None


class Cloud:
    """AWS as one instance of one fleet sees it.

    Parameters:
        region: the fleet's.
        endpoint_url: another AWS-compatible API, or None.
        table: name of the claim table.
        instance: this instance's id.
        system: for the clock.
        clients: ready clients by service, for tests.
    """

    def __init__(
        self,
        *,
        region: str,
        endpoint_url: str | None,
        table: str,
        instance: str,
        system: System,
        clients: Mapping[str, Any] | None = None,
    ) -> None:
        self._region = region
        self._endpoint_url = endpoint_url
        self._table = table
        self._instance = instance
        self._system = system
        self._clients = dict(clients or {})
        self.notes: list[str] = []

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = boto3.client(
                service,  # type: ignore[call-overload]
                region_name=self._region,
                endpoint_url=self._endpoint_url,
                config=CONFIGURATION,
            )
        return self._clients[service]

    def _claims(self) -> ClaimTable:
        return ClaimTable(self._client("dynamodb"), self._table)

    def claim(self, slots: Sequence[str]) -> str:
        """Hold one of the slots.

        Raises:
            NoFreeSlotError: when all are held.
            FailureError: when AWS refuses or does not answer.
        """
        with _explained(f"can't claim a slot in table {self._table}"):
            return claim_slot(
                self._claims(),
                slots,
                self._instance,
                states_of=self._states,
                clock=self._system.time,
            )

    def _states(self, instances: Sequence[str]) -> dict[str, str]:
        """States of instances; when EC2 does not say, all of them count as alive."""
        try:
            return instance_states(self._client("ec2"), instances)
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
            self.notes.append(f"EC2 does not say which owners of claims are gone: {error}")
            return dict.fromkeys(instances, "not said")

    def describe(self, slot: str, tunnel_mtu: int) -> None:
        """Note on the claim that this member serves, and with which tunnel MTU."""
        with _explained(f"can't describe the claim of {slot}"):
            self._claims().describe(
                slot, self._instance, tunnel_mtu=tunnel_mtu, now=self._system.time()
            )

    def release(self, slot: str) -> bool:
        """Give the slot back; False when it was not one's own any more."""
        with _explained(f"can't release the claim of {slot}"):
            return self._claims().release(slot, self._instance)

    def secrets(self, names: Sequence[str]) -> list[str]:
        """Decrypted parameters, in the order asked for."""
        with _explained(f"can't read {', '.join(names)} from SSM"):
            answer = self._client("ssm").get_parameters(Names=list(names), WithDecryption=True)
        values = {item["Name"]: item["Value"] for item in answer["Parameters"]}
        missing = [name for name in names if name not in values]
        if missing:
            message = f"SSM has no parameter {', '.join(missing)}: `pulumi up` makes it"
            raise FailureError(message)
        return [values[name] for name in names]

    def report_unhealthy(self) -> None:
        """Ask the group for a replacement at once."""
        with _explained("can't report the instance unhealthy"):
            self._client("autoscaling").set_instance_health(
                InstanceId=self._instance,
                HealthStatus="Unhealthy",
                ShouldRespectGracePeriod=False,
            )

    def complete_lifecycle_action(self, group: str, hook: str, result: str) -> None:
        """Tell a waiting hook to go on (CONTINUE) or give up (ABANDON)."""
        with _explained(f"can't complete lifecycle hook {hook}"):
            self._client("autoscaling").complete_lifecycle_action(
                AutoScalingGroupName=group,
                LifecycleHookName=hook,
                InstanceId=self._instance,
                LifecycleActionResult=result,
            )
