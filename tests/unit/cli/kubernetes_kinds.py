"""The part of Kubernetes' API that our manifests use, as strict types: an unknown field is refused.

From the API reference of 1.29; the names are Kubernetes' own.
"""
# ruff: noqa: N815

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Port = Annotated[int, Meta(ge=1, le=65535)]
PortName = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,15}$")]
Quantity = Annotated[str, Meta(pattern=r"^[0-9.]+(m|[kMGTPE]i?|Ki)?$")]
Path = Annotated[str, Meta(pattern=r"^/[^:]*$")]
Text = Annotated[str, Meta(max_length=63)]


class Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every object below."""


class Metadata(Strict, frozen=True):
    labels: dict[str, Text]
    name: Name | None = None
    namespace: Name | None = None
    annotations: dict[str, str] = {}


class Selector(Strict, frozen=True):
    matchLabels: Annotated[dict[str, Text], Meta(min_length=1)]


class Seccomp(Strict, frozen=True):
    type: Literal["RuntimeDefault", "Unconfined", "Localhost"]


class Sysctl(Strict, frozen=True):
    """Of those that Kubernetes calls safe."""

    name: Literal["net.ipv4.ip_local_port_range"]
    value: Annotated[str, Meta(pattern=r"^[0-9]+ [0-9]+$")]


class PodSecurity(Strict, frozen=True):
    seccompProfile: Seccomp
    sysctls: list[Sysctl]
    runAsNonRoot: bool = False
    runAsUser: Annotated[int, Meta(ge=0)] | None = None


class Capabilities(Strict, frozen=True):
    drop: list[str] = []
    add: list[str] = []


class ContainerSecurity(Strict, frozen=True):
    allowPrivilegeEscalation: bool
    readOnlyRootFilesystem: bool
    capabilities: Capabilities


class ContainerPort(Strict, frozen=True):
    containerPort: Port
    name: PortName
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


class Variable(Strict, frozen=True):
    name: str
    value: str


class Resources(Strict, frozen=True):
    limits: dict[str, Quantity]
    requests: dict[str, Quantity]


class VolumeMount(Strict, frozen=True):
    name: Name
    mountPath: Path
    readOnly: bool = False


class Container(Strict, frozen=True):
    name: Name
    image: str
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"]
    command: Annotated[list[str], Meta(min_length=1)]
    ports: list[ContainerPort]
    resources: Resources
    securityContext: ContainerSecurity
    volumeMounts: list[VolumeMount]
    env: list[Variable] = []


class Claim(Strict, frozen=True):
    claimName: Name
    readOnly: bool = False


class HostPath(Strict, frozen=True):
    path: Path
    type: str = ""


class Volume(Strict, frozen=True):
    name: Name
    persistentVolumeClaim: Claim | None = None
    hostPath: HostPath | None = None


class PodSpec(Strict, frozen=True):
    containers: Annotated[list[Container], Meta(min_length=1)]
    volumes: list[Volume]
    securityContext: PodSecurity
    automountServiceAccountToken: bool
    enableServiceLinks: bool
    hostNetwork: bool
    hostPID: bool
    hostIPC: bool
    restartPolicy: Literal["Always"]  # the one that a deployment takes
    runtimeClassName: Name | None = None


class PodTemplate(Strict, frozen=True):
    metadata: Metadata
    spec: PodSpec


class Strategy(Strict, frozen=True):
    type: Literal["Recreate", "RollingUpdate"]


class DeploymentSpec(Strict, frozen=True):
    replicas: Annotated[int, Meta(ge=0)]
    strategy: Strategy
    selector: Selector
    template: PodTemplate


class Deployment(Strict, frozen=True):
    apiVersion: Literal["apps/v1"]
    kind: Literal["Deployment"]
    metadata: Metadata
    spec: DeploymentSpec


class ServicePort(Strict, frozen=True):
    name: PortName
    protocol: Literal["TCP", "UDP", "SCTP"]
    port: Port
    targetPort: Port


class ServiceSpec(Strict, frozen=True):
    selector: dict[str, Text]
    ports: list[ServicePort]


class Service(Strict, frozen=True):
    apiVersion: Literal["v1"]
    kind: Literal["Service"]
    metadata: Metadata
    spec: ServiceSpec


class IpBlock(Strict, frozen=True):
    cidr: Annotated[str, Meta(pattern=r"^[0-9a-f.:]+/[0-9]{1,3}$")]


class Peer(Strict, frozen=True):
    ipBlock: IpBlock | None = None
    podSelector: Selector | None = None


class PolicyPort(Strict, frozen=True):
    protocol: Literal["TCP", "UDP", "SCTP"]
    port: Port
    endPort: Port | None = None


class Ingress(Strict, frozen=True):
    source: list[Peer] = field(name="from")
    ports: list[PolicyPort]


class Egress(Strict, frozen=True):
    to: list[Peer]
    ports: list[PolicyPort] = []


class NetworkPolicySpec(Strict, frozen=True):
    podSelector: Selector
    policyTypes: list[Literal["Ingress", "Egress"]]
    ingress: list[Ingress]
    egress: list[Egress]


class NetworkPolicy(Strict, frozen=True):
    apiVersion: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: NetworkPolicySpec


KINDS: dict[tuple[str, str], Any] = {
    ("apps/v1", "Deployment"): Deployment,
    ("v1", "Service"): Service,
    ("networking.k8s.io/v1", "NetworkPolicy"): NetworkPolicy,
}
