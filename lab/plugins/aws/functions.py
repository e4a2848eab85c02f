"""Owns the rows for Lambda: function and its URL."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from lab.plugins.aws import shapes
from lab.plugins.aws.cloud import Cloud, RefusedError
from lab.plugins.aws.kinds import Change, Kind, pick, words
from lab.plugins.values import Archive, Asset, Properties

FUNCTION: Final = "aws:lambda/function:Function"
URL: Final = "aws:lambda/functionUrl:FunctionUrl"

ACTIVE_SECONDS: Final = 300.0
ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)
"""The same files must give the same bytes, else every run would deploy anew."""

FUNCTION_NAMES: Final[Mapping[str, str]] = {"name": "FunctionName"}
CONFIGURATION: Final = (
    "description environment handler layers memorySize role runtime timeout tracingConfig"
    " ephemeralStorage"
)


def _archive_files(prefix: str, content: Archive | Asset) -> Iterator[tuple[str, bytes]]:
    if isinstance(content, Asset):
        yield prefix, content.read()
        return
    for name, inner in content.assets:
        yield from _archive_files(f"{prefix}/{name}" if prefix else name, inner)
    if content.path is None:
        if not content.assets:
            message = "code: the archive is neither a path nor a map of files; use one of these"
            raise RefusedError(message)
        return
    path = Path(content.path)
    if path.is_dir():
        for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
            name = file.relative_to(path).as_posix()
            yield (f"{prefix}/{name}" if prefix else name), file.read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield (f"{prefix}/{name}" if prefix else name), archive.read(name)


def _zipped(code: Archive | Asset) -> bytes:
    packed = io.BytesIO()
    try:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in sorted(_archive_files("", code)):
                entry = zipfile.ZipInfo(name, ZIP_TIME)
                entry.external_attr = 0o755 << 16
                archive.writestr(entry, content)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        message = f"code: cannot be packed: {error}"
        raise RefusedError(message) from error
    return packed.getvalue()


def _create_function(cloud: Cloud, inputs: Properties) -> str:
    wanted = pick(inputs, CONFIGURATION + " architectures name packageType publish")
    parameters = shapes.request(cloud, "lambda", "CreateFunction", wanted, FUNCTION_NAMES)
    if "code" not in inputs:
        message = "code: the stand-in deploys from an archive only; give one"
        raise RefusedError(message)
    cloud.call(
        "lambda",
        "create_function",
        Code={"ZipFile": _zipped(inputs["code"])},
        Tags=cloud.all_tags(inputs.get("tags")),
        **parameters,
    )
    return str(inputs["name"])


def _set_concurrency(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    # -1 is the official provider's word for "no limit".
    limit = inputs.get("reservedConcurrentExecutions", -1)
    if limit >= 0:
        cloud.call(
            "lambda",
            "put_function_concurrency",
            FunctionName=resource_id,
            ReservedConcurrentExecutions=limit,
        )


def _wait_for_function(cloud: Cloud, resource_id: str) -> None:
    def settled() -> bool:
        found = _configuration(cloud, resource_id)
        states = found.get("State", "Active"), found.get("LastUpdateStatus", "Successful")
        return states == ("Active", "Successful")

    cloud.wait(f"function {resource_id}: waiting until it is active", settled, ACTIVE_SECONDS)


def _finish_function(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    _wait_for_function(cloud, resource_id)
    _set_concurrency(cloud, resource_id, inputs)


def _configuration(cloud: Cloud, resource_id: str) -> Any:
    return cloud.call("lambda", "get_function", FunctionName=resource_id)["Configuration"]


def _read_function(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
    answer = cloud.call("lambda", "get_function", FunctionName=resource_id)
    found = answer["Configuration"]
    limit = answer.get("Concurrency", {}).get("ReservedConcurrentExecutions", -1)
    environment = found.get("Environment", {})
    known = {key: value for key, value in found.items() if key not in {"Environment", "Layers"}}
    arn = found["FunctionArn"]
    invoke = f"arn:{cloud.partition}:apigateway:{cloud.region}:lambda:path/2015-03-31/functions"
    return shapes.state(FUNCTION, known, FUNCTION_NAMES) | {
        "arn": arn,
        "codeSha256": found["CodeSha256"],
        "environment": {"variables": environment["Variables"]}
        if environment.get("Variables")
        else None,
        "invokeArn": f"{invoke}/{arn}/invocations",
        "lastModified": found["LastModified"],
        "name": found["FunctionName"],
        "qualifiedArn": f"{arn}:{found['Version']}",
        "reservedConcurrentExecutions": limit,
        "sourceCodeSize": found["CodeSize"],
        "tagsAll": answer.get("Tags", {}),
        "version": found["Version"],
    }


def _update_function(cloud: Cloud, resource_id: str, change: Change) -> None:
    inputs = change.inputs
    if change.changed & {"code", "architectures"}:
        cloud.call(
            "lambda",
            "update_function_code",
            FunctionName=resource_id,
            ZipFile=_zipped(inputs["code"]),
            Architectures=inputs.get("architectures", ["x86_64"]),
        )
        _wait_for_function(cloud, resource_id)
    if changed := change.changed & words(CONFIGURATION):
        wanted = pick(inputs, " ".join(changed))
        parameters = shapes.request(
            cloud, "lambda", "UpdateFunctionConfiguration", wanted, FUNCTION_NAMES
        )
        if "environment" in changed and "environment" not in inputs:
            parameters["Environment"] = {"Variables": {}}
        cloud.call(
            "lambda", "update_function_configuration", FunctionName=resource_id, **parameters
        )
        _wait_for_function(cloud, resource_id)
    if "reservedConcurrentExecutions" in change.changed:
        if inputs.get("reservedConcurrentExecutions", -1) >= 0:
            _set_concurrency(cloud, resource_id, inputs)
        else:
            cloud.call("lambda", "delete_function_concurrency", FunctionName=resource_id)
    tags = cloud.all_tags(inputs.get("tags"))
    surplus = change.state.get("tagsAll", {}).keys() - tags.keys()
    arn = change.state["arn"]
    if surplus:
        cloud.call("lambda", "untag_resource", Resource=arn, TagKeys=sorted(surplus))
    if tags:
        cloud.call("lambda", "tag_resource", Resource=arn, Tags=tags)


def _delete_function(cloud: Cloud, resource_id: str, _state: Properties) -> None:
    cloud.call("lambda", "delete_function", FunctionName=resource_id)


def _url_request(cloud: Cloud, operation: str, inputs: Properties) -> dict[str, Any]:
    wanted = pick(inputs, "authorizationType cors functionName invokeMode qualifier")
    return shapes.request(cloud, "lambda", operation, wanted, {"authorizationType": "AuthType"})


def _create_url(cloud: Cloud, inputs: Properties) -> str:
    request = _url_request(cloud, "CreateFunctionUrlConfig", inputs)
    cloud.call("lambda", "create_function_url_config", **request)
    return str(inputs["functionName"])


def _read_url(cloud: Cloud, _id: str, state: Properties) -> Properties | None:
    found = cloud.call("lambda", "get_function_url_config", FunctionName=state["functionName"])
    url = str(found["FunctionUrl"])
    return shapes.state(URL, {k: found[k] for k in ("Cors", "InvokeMode") if k in found}, {}) | {
        "authorizationType": found["AuthType"],
        "functionArn": found["FunctionArn"],
        "functionUrl": url,
        "urlId": url.partition("://")[2].partition(".")[0],
    }


def _update_url(cloud: Cloud, _id: str, change: Change) -> None:
    request = _url_request(cloud, "UpdateFunctionUrlConfig", change.inputs)
    cloud.call("lambda", "update_function_url_config", **request)


def _delete_url(cloud: Cloud, _id: str, state: Properties) -> None:
    cloud.call("lambda", "delete_function_url_config", FunctionName=state["functionName"])


KINDS: Final[Mapping[str, Kind]] = {
    FUNCTION: Kind(
        inputs=words(
            CONFIGURATION + " architectures code name packageType publish tags"
            " reservedConcurrentExecutions"
        ),
        defaults={
            "memorySize": 128,
            "packageType": "Zip",
            "publish": False,
            "reservedConcurrentExecutions": -1,
            "timeout": 3,
        },
        create=_create_function,
        finish=_finish_function,
        read=_read_function,
        update=_update_function,
        delete=_delete_function,
        name="name",
        name_limit=64,
        moving=words("codeSha256 lastModified qualifiedArn sourceCodeSize version"),
    ),
    URL: Kind(
        inputs=words("authorizationType cors functionName invokeMode qualifier"),
        defaults={"invokeMode": "BUFFERED"},
        create=_create_url,
        read=_read_url,
        update=_update_url,
        delete=_delete_url,
        tagged=False,
    ),
}
