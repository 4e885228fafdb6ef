"""Runs in SkyPilot's own environment: one request as JSON on standard input, one answer out.

No part of the course is imported here; ``helpers.rent.skypilot`` is the other end.
"""

import json
import sys


def check(request: dict) -> list[str]:
    """Parse a task; what it asks for, sorted."""
    return sorted(str(resources) for resources in _task(request).resources)


def check_service(request: dict) -> dict:
    """Parse a service; what it asks of SkyServe."""
    service = _task(request).service
    return {
        "replicas": [service.min_replicas, service.max_replicas],
        "requests_per_s": service.target_qps_per_replica,
        "probe": service.readiness_path,
        "key": (service.readiness_headers or {}).get("Authorization"),
        "seconds": service.initial_delay_seconds,
    }


def launch(request: dict) -> str:
    """Launch on the cheapest cloud that has it; what it runs on."""
    import sky

    job = sky.launch(_task(request), cluster_name=request["cluster"])
    _, handle = sky.stream_and_get(job, output_stream=sys.stdout)
    return str(handle.launched_resources) if handle else ""


def endpoint(request: dict) -> str:
    """Address of the opened port."""
    import sky

    found = sky.get(sky.endpoints(request["cluster"], request["port"]))
    return next(iter(found.values()))


def clusters(request: dict) -> list[dict]:
    """Everything that SkyPilot knows to be there."""
    import sky

    return [
        {
            "name": row["name"],
            "status": getattr(row["status"], "value", str(row["status"])),
            "hardware": str(row.get("resources_str") or ""),
        }
        for row in sky.get(sky.status(refresh=sky.StatusRefreshMode.AUTO))
    ]


def down(request: dict) -> None:
    """Take a cluster down; one that is not there is fine."""
    import sky

    try:
        sky.get(sky.down(request["cluster"]))
    except sky.exceptions.ClusterDoesNotExist:
        return


def _task(request: dict):
    import sky

    # The parser fails on a secret without a value: a check only needs that there is one.
    given = request.get("secrets") or dict.fromkeys(request["task"].get("secrets") or {}, "-")
    return sky.Task.from_yaml_config(request["task"], secrets_overrides=list(given.items()))


def main() -> None:
    """Answer one request; what SkyPilot raises becomes one sentence."""
    request = json.load(sys.stdin)
    known = (check, check_service, launch, endpoint, clusters, down)
    work = {f.__name__: f for f in known}[request["what"]]
    try:
        answer = {"result": work(request)}
    except Exception as error:
        sentence = " ".join(str(error).split()) or type(error).__name__
        hint = "the field's name and form are in SkyPilot's YAML reference (docs.skypilot.co)"
        if not request["what"].startswith("check"):
            hint = "`sky check` says which clouds it can use, `sky status` what is running"
        answer = {"error": sentence[:500], "hint": hint}
    print("\n" + json.dumps({"sky": answer}), flush=True)


if __name__ == "__main__":
    main()
