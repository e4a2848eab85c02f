"""The program's table of contents: settings → core, mesh, services, door → fleets → outputs."""

import pulumi

from halves import FleetOutputs, build_core, build_fleets, build_fleets_of_another_core
from revision import revision
from settings import PROJECT, ROOT, Layout, SettingsError, load


def program() -> None:
    """Build what the stack's settings describe: both halves, or the one that layout says."""
    config = pulumi.Config(PROJECT)
    settings = load(config)
    if settings.layout is Layout.EDGE:
        export_fleets(pulumi.Output.from_input(build_fleets_of_another_core(settings)))
    else:
        core = build_core(settings, config)
        for name, value in core.outputs.items():
            pulumi.export(name, value)
        if settings.layout is Layout.CORE:
            pulumi.export("join_bundles", core.join_bundles)
        else:
            export_fleets(pulumi.Output.from_input(build_fleets(settings, core)))
    pulumi.export("revision", revision(ROOT))


def export_fleets(fleets: pulumi.Output[dict[str, FleetOutputs]]) -> None:
    """Put out each fleet's group, and its functions with their addresses."""
    pulumi.export("fleets", fleets.apply(lambda all_: {n: f["group"] for n, f in all_.items()}))
    functions = fleets.apply(lambda all_: {n: f["functions"] for n, f in all_.items()})
    pulumi.export("functions", functions)


try:
    program()
except SettingsError as error:
    raise pulumi.RunError(str(error)) from None
