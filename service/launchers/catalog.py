"""The launchers that the settings set up, by name."""

from __future__ import annotations

from service.launchers.base import Launcher
from service.launchers.container import ContainerLauncher
from service.launchers.kubernetes import Cluster, KubernetesLauncher
from service.launchers.process import ProcessLauncher
from service.launchers.ray import RayLauncher
from service.settings import Settings


def set_up_launchers(settings: Settings) -> dict[str, Launcher]:
    """Return what runs can be started by; each is ready only when it is used."""
    launchers: dict[str, Launcher] = {"process": ProcessLauncher()}
    if settings.container_image:
        launchers["container"] = ContainerLauncher(settings.container_image)
        if settings.kubernetes_claim:
            cluster = Cluster(
                settings.container_image, settings.kubernetes_claim, settings.kubernetes_namespace
            )
            launchers["kubernetes"] = KubernetesLauncher(cluster)
    if settings.ray_address:
        launchers["ray"] = RayLauncher(settings.ray_address)
    return launchers
