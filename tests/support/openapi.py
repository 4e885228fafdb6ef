"""Requests and answers against a published OpenAPI 3.1 description (a helper of the tests)."""

import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jsonschema
import pytest
import requests
import yaml
from referencing import Registry, Resource

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "apis"

# Where Vast.ai's description contradicts its own SDK and documentation (the wire is right):
# the environment is an object, a search is "on-demand" with a list of orderings, launch modes are
# written "ssh_direc ssh_proxy", a template makes the image optional, and null means "not given".
VAST_MISTAKES = {
    ("put", "/api/v0/asks/{id}"): {"env", "runtype", "image"},
    ("post", "/api/v0/bundles"): {"type", "order"},
}


class Description:
    """A published description; ``mistakes`` names request properties that it gets wrong."""

    def __init__(self, file: str, mistakes: dict | None = None) -> None:
        path = PUBLISHED / file
        if not path.exists():
            pytest.skip(f"the published description {file} is not at hand")
        text = path.read_text()
        self.document = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        self.mistakes = mistakes or {}
        resource = Resource.from_contents(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **self.document}
        )
        self.registry = Registry().with_resource("urn:published", resource)
        self.paths = {
            re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)) + "/?"): path
            for path in sorted(self.document["paths"], key=lambda path: path.count("{"))
        }

    def check(self, response: requests.Response, answers: bool = False) -> None:
        """Fail when a request that was sent (or, with ``answers``, its answer) does not fit."""
        request = response.request
        url, method = urlsplit(request.url), request.method.lower()
        path = next(path for pattern, path in self.paths.items() if pattern.fullmatch(url.path))
        operation = self.document["paths"][path].get(method)
        assert operation, f"{method} {path} is not in the description"
        where = f"{method} {url.path}"
        self._check_query(operation, parse_qs(url.query), where)
        pointer = f"/paths/{path.replace('/', '~1')}/{method}"
        if "requestBody" in operation:
            body = json.loads(request.body or "null")
            wrong = self.mistakes.get((method, path), set())
            if self.mistakes:
                body = {k: v for k, v in body.items() if v is not None}
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                schema = {**schema, "required": set(schema.get("required", [])) - wrong}
                schema["required"] = sorted(schema["required"])
                schema["properties"] = {
                    name: {} if name in wrong else rule
                    for name, rule in schema["properties"].items()
                }
            else:
                pointed = f"{pointer}/requestBody/content/application~1json/schema"
                schema = {"$ref": f"urn:published#{pointed}"}
            self._validate(body, schema, where)
        status = str(response.status_code)
        if answers and "application/json" in response.headers.get("Content-Type", ""):
            assert status in operation["responses"], f"{where} answered {status}"
            pointed = f"{pointer}/responses/{status}/content/application~1json/schema"
            self._validate(response.json(), {"$ref": f"urn:published#{pointed}"}, where)

    def _check_query(self, operation: dict, query: dict, where: str) -> None:
        known = {}
        for parameter in operation.get("parameters", []):
            if "$ref" in parameter:
                parameter = self.document["components"]["parameters"][
                    parameter["$ref"].rpartition("/")[2]
                ]
            known[parameter["name"]] = parameter
        unknown = set(query) - set(known) - ({"owner"} if self.mistakes else set())
        assert not unknown, f"{where} has no query {unknown}"
        missing = {n for n, p in known.items() if p["in"] == "query" and p.get("required")}
        assert missing <= set(query), f"{where} needs {missing - set(query)}"

    def _validate(self, instance: object, schema: dict, where: str) -> None:
        validator = jsonschema.Draft202012Validator(schema, registry=self.registry)
        errors = [f"{e.json_path}: {e.message[:300]}" for e in validator.iter_errors(instance)]
        assert not errors, f"{where}: {errors}"
