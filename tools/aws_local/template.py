"""template.yaml and infra/*.yaml as data, and the values that they have in a deployment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tools.aws_local.emulator import ACCOUNT, REGION

Template = dict[str, Any]
_PSEUDO: Final = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::URLSuffix": "amazonaws.com",
}
_NOTHING: Final = {"Ref": "AWS::NoValue"}


class _Loader(yaml.SafeLoader):
    """Reads `!Ref x` as {"Ref": "x"} and `!Sub x` as {"Fn::Sub": "x"}."""


def _intrinsic(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if tag == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {tag if tag in ("Ref", "Condition") else f"Fn::{tag}": value}


_Loader.add_multi_constructor("!", _intrinsic)  # type: ignore[no-untyped-call]


def load_template(path: Path) -> Template:
    """The intrinsic functions stay what they are, as one-key mappings."""
    loaded: Template = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    return loaded


@dataclass(frozen=True, slots=True)
class Scope:
    """What the names of a template mean: its parameters, and the physical ids of its resources."""

    template: Template
    parameters: Mapping[str, Any]
    resources: Mapping[str, str]

    def value(self, given: Any) -> Any:  # noqa: ANN401 - whatever a template holds
        """`given` with its functions worked out. Raises KeyError for a name or function not known here."""
        if isinstance(given, list):
            return [self.value(one) for one in given if self._chosen(one) != _NOTHING]
        if not isinstance(given, dict):
            return given
        if len(given) != 1 or not next(iter(given)).startswith(("Ref", "Fn::")):
            return {name: self.value(one) for name, one in given.items()}
        return self._called(*next(iter(given.items())))

    def _called(self, function: str, argument: Any) -> Any:  # noqa: ANN401
        if function == "Ref":
            return self._name(argument)
        if function == "Fn::GetAtt":
            return self._attribute(*argument)
        if function == "Fn::Sub" and isinstance(argument, str):
            return re.sub(r"\$\{([^}!]+)\}", lambda found: str(self._name(found[1])), argument)
        if function == "Fn::If":
            return self.value(self._chosen({function: argument}))
        raise KeyError(f"{function} is not worked out here")

    def _chosen(self, given: Any) -> Any:  # noqa: ANN401
        """What a choice comes to, not worked out; anything else as it is."""
        while isinstance(given, dict) and list(given) == ["Fn::If"]:
            condition, yes, no = given["Fn::If"]
            given = yes if self._holds(self.template["Conditions"][condition]) else no
        return given

    def _name(self, name: str) -> Any:  # noqa: ANN401
        if name in _PSEUDO:
            return _PSEUDO[name]
        if name in self.parameters:
            return self.parameters[name]
        if name in self.template["Parameters"]:
            return self.template["Parameters"][name]["Default"]
        if "." in name:
            return self._attribute(*name.split(".", 1))
        return self.resources[name]

    def _attribute(self, name: str, attribute: str) -> str:
        kind = self.template["Resources"][name]["Type"]
        if (kind, attribute) != ("AWS::KMS::Key", "Arn"):
            raise KeyError(f"{attribute} of {kind} is not worked out here")
        return f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{self.resources[name].rpartition('/')[2]}"

    def _holds(self, condition: Any) -> bool:  # noqa: ANN401
        ((function, argument),) = condition.items()
        if function == "Fn::Not":
            return not self._holds(argument[0])
        if function == "Fn::Or":
            return any(self._holds(one) for one in argument)
        if function == "Fn::Equals":
            left, right = (self.value(one) for one in argument)
            return bool(left == right)
        raise KeyError(f"{function} is not worked out here")
