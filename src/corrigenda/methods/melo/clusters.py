"""MELO's database: clusters of keys, each with a label, and the block that each key selects.

A patch records for each of its facts whether it opened a cluster, joined one, or was in conflict
with one. The clusters are computed from the records of all active patches in order, by the
published rules, so reverting an edit also undoes what it did to the clusters of other edits. A
record whose cluster is no longer active opens one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corrigenda.linalg.nearest import NearestSearch, NearestVectors

OPENED, JOINED, IN_CONFLICT, REPLACED = 0, 1, 2, 3
"""Act of a record: it opened a cluster, joined one, opened one that shrinks another, or opened one
with the same centre as another."""

ACT_NAMES = ("opened", "joined", "in conflict", "replaced")

_GAP = 1e-5


class ClusterRecords(NamedTuple):
    """Records of edits, one row each.

    Attributes:
        keys: Output of the index layer at the prompts' last tokens.
        radii: Radius of a new cluster.
        noise: How far a key may lie from itself when read again.
        acts: `OPENED`, `JOINED`, `IN_CONFLICT` or `REPLACED`.
        ids: Number of each record.
        roots: Number of the record that opened the cluster it met; 0 for none.
        blocks: Block that the key selects.
        targets: Tokens of the answers, one after another.
        lengths: How many of them each record has.
    """

    keys: Float[Tensor, "n d"]
    radii: Float[Tensor, " n"]
    noise: Float[Tensor, " n"]
    acts: Int[Tensor, " n"]
    ids: Int[Tensor, " n"]
    roots: Int[Tensor, " n"]
    blocks: Int[Tensor, " n"]
    targets: Int[Tensor, " tokens"]
    lengths: Int[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Cluster:
    """Keys with one answer.

    Attributes:
        id: Number of the record that opened it.
        centre: Mean of its keys; where all are forgotten, the last mean.
        radius: Largest distance from the centre at which a query belongs to it.
        label: Tokens of the answer.
        points: Records of its keys.
    """

    id: int
    centre: Float[Tensor, " d"]
    radius: float
    label: tuple[int, ...]
    points: list[int] = field(default_factory=list)


@dataclass(eq=False)
class ClusterDatabase:
    """Clusters computed from records.

    Attributes:
        device: Where centres are searched.
        keys: Of the records.
        clusters: In the order in which they were opened; one that changes is replaced.
        forgotten: Records whose keys fell out of their cluster.
    """

    device: torch.device | str = "cpu"
    keys: list[Float[Tensor, " d"]] = field(default_factory=list)
    clusters: list[Cluster] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)
    _by_id: dict[int, int] = field(default_factory=dict)
    _search: CentreSearch | None = None
    _undo: list[Callable[[], object]] | None = None

    def extend(self, part: Mapping[str, Tensor]) -> None:
        """Apply the records of a patch, which has the fields of `ClusterRecords` by name."""
        names = ("radii", "noise", "acts", "ids", "roots", "lengths")
        targets = part["targets"].tolist()
        begin = 0
        for key, radius, noise, act, number, root, length in zip(
            part["keys"].unbind(0), *(part[name].tolist() for name in names), strict=True
        ):
            label = tuple(targets[begin : begin + length])
            begin += length
            self.apply(key, label, radius, noise, act, number, root)

    @contextmanager
    def trial(self) -> Generator[None]:
        """Apply records only until left: then the clusters are as they were."""
        assert self._undo is None, "trials are not nested"
        self._undo = []
        numbers = len(self.keys), len(self.clusters), len(self.forgotten)
        try:
            yield
        finally:
            for undo in reversed(self._undo):
                undo()
            self._undo = None
            for some, count in zip(
                (self.keys, self.clusters, self.forgotten), numbers, strict=True
            ):
                del some[count:]
            if self._search is not None:
                self._search.truncate(numbers[1])

    def __len__(self) -> int:
        return len(self.clusters)

    def apply(
        self,
        key: Float[Tensor, " d"],
        label: tuple[int, ...],
        radius: float,
        noise: float,
        act: int,
        number: int,
        root: int,
    ) -> None:
        """Apply one record; see `ClusterRecords` for the arguments."""
        row = len(self.keys)
        self.keys.append(key)
        place = self._by_id.get(root)
        if act == OPENED or place is None:
            self._open(row, number, radius, label)
            return
        cluster = self.clusters[place]
        if act == JOINED:
            points = [*cluster.points, row]
            own = torch.stack([self.keys[point] for point in points]).double()
            centre = own.mean(0)
            reach = float((own - centre).norm(dim=1).max()) + noise
            reach = max(radius, reach) if len(points) > 1 else radius
            self._replace(place, replace(cluster, centre=centre, radius=reach, points=points))
            return
        half = _distance(key, cluster.centre) / 2
        smaller = -1.0 if act == REPLACED else max(0.0, half - _GAP)
        points = [
            point
            for point in cluster.points
            if _distance(self.keys[point], cluster.centre) <= smaller
        ]
        self.forgotten += [point for point in cluster.points if point not in points]
        self._replace(place, replace(cluster, radius=smaller, points=points))
        self._open(row, number, radius if act == REPLACED else half + _GAP, label)

    def nearest(self, key: Float[Tensor, " d"]) -> tuple[Cluster | None, float]:
        """Return the living cluster with the nearest centre, and its distance."""
        found = self.search().search(key[None])
        place = int(found.indices[0])
        return None if place < 0 else self.clusters[place], float(found.distances[0])

    def search(self) -> CentreSearch:
        """Return the search among the centres of the living clusters, brought up to date."""
        if self._search is None:
            self._search = CentreSearch(self.device)
        self._search.extend(self.clusters)
        return self._search

    def _open(self, row: int, number: int, radius: float, label: tuple[int, ...]) -> None:
        self._on_undo(partial(_restore, self._by_id, number, self._by_id.get(number)))
        self._by_id[number] = len(self.clusters)
        self.clusters.append(Cluster(number, self.keys[row], radius, label, [row]))

    def _replace(self, place: int, cluster: Cluster) -> None:
        self._on_undo(partial(self._put, place, self.clusters[place]))
        self._put(place, cluster)

    def _put(self, place: int, cluster: Cluster) -> None:
        before, self.clusters[place] = self.clusters[place], cluster
        is_dead = before.radius < 0, cluster.radius < 0
        if before.centre is not cluster.centre or is_dead[0] != is_dead[1]:
            self._search = None

    def _on_undo(self, undo: Callable[[], object]) -> None:
        if self._undo is not None:
            self._undo.append(undo)


class CentreSearch:
    """Search among the centres of living clusters.

    Attributes:
        num_clusters: How many clusters it knows, dead ones included.
    """

    def __init__(self, device: torch.device | str) -> None:
        """Begin without clusters."""
        self._device = device
        self._places: list[int] = []
        self._nearest: NearestSearch | None = None
        self.num_clusters = 0

    def extend(self, clusters: Sequence[Cluster]) -> None:
        """Take in the clusters that were opened after those it knows."""
        places = [
            place
            for place in range(self.num_clusters, len(clusters))
            if clusters[place].radius >= 0
        ]
        self.num_clusters = len(clusters)
        if not places:
            return
        # A pass may be the first to need it, and it outlives that.
        with torch.inference_mode(False):
            centres = torch.stack([clusters[place].centre.float() for place in places])
            if self._nearest is None:
                self._nearest = NearestSearch(centres.to(self._device))
            else:
                self._nearest.extend(centres.to(self._device))
        self._places += places

    def truncate(self, num_clusters: int) -> None:
        """Forget the clusters from some number on."""
        self.num_clusters = min(self.num_clusters, num_clusters)
        while self._places and self._places[-1] >= num_clusters:
            del self._places[-1]
        if self._nearest is not None:
            self._nearest.truncate(len(self._places))
            if not self._places:
                self._nearest = None

    def search(self, queries: Float[Tensor, "queries d"]) -> NearestVectors:
        """Find the nearest living cluster of each query; -1 where there is none."""
        if self._nearest is None:
            distances = torch.full((len(queries),), torch.inf, dtype=torch.float64)
            return NearestVectors(distances, torch.full((len(queries),), -1))
        found = self._nearest.search(queries)
        places = [self._places[index] for index in found.indices.tolist()]
        return NearestVectors(found.distances, torch.tensor(places, dtype=torch.long))


class ClusterIndex:
    """Index that finds a query's block: the nearest centre, then that cluster's nearest key."""

    def __init__(self, database: ClusterDatabase, blocks: Sequence[int]) -> None:
        """Prepare to search."""
        self._database, self._blocks = database, blocks

    def find_blocks(self, queries: Float[Tensor, "queries d"]) -> Int[Tensor, " queries"]:
        """Return the block that each query selects, -1 for none; on the CPU."""
        found = self._database.search().search(queries)
        routes = []
        for query, distance, index in zip(
            queries.double().cpu(), found.distances.tolist(), found.indices.tolist(), strict=True
        ):
            if index < 0:
                routes.append(-1)
                continue
            cluster = self._database.clusters[index]
            points = cluster.points
            if distance > cluster.radius or not points:
                routes.append(-1)
                continue
            place = 0
            if len(points) > 1:
                own = torch.stack([self._database.keys[point] for point in points]).double()
                place = int((own - query).norm(dim=1).argmin())
            routes.append(int(self._blocks[points[place]]))
        return torch.tensor(routes)


def _restore(numbers: dict[int, int], number: int, place: int | None) -> None:
    if place is None:
        del numbers[number]
    else:
        numbers[number] = place


def _distance(one: Float[Tensor, " d"], other: Float[Tensor, " d"]) -> float:
    return float((one.double() - other.double()).norm())


class ClusterPlacement(NamedTuple):
    """Where one fact goes in the database.

    Attributes:
        act: `OPENED`, `JOINED`, `IN_CONFLICT` or `REPLACED`.
        root: Number of the record that opened the cluster it meets, 0 for none.
        distance: To the nearest centre; infinite where there is none.
    """

    act: int
    root: int
    distance: float


def place_fact(
    database: ClusterDatabase,
    key: Float[Tensor, " d"],
    label: tuple[int, ...],
    radius: float,
    noise: float,
    *,
    is_first: bool,
) -> ClusterPlacement:
    """Decide where a fact goes, given the present clusters.

    Args:
        database: The clusters; not changed.
        key: Of the fact.
        label: Tokens of its answer, compared exactly.
        radius: R_init.
        noise: How far the key may lie from itself when read again.
        is_first: Whether the database was empty before the batch: then all open clusters.

    Reference: Yu et al. 2024, section 3.3, algorithm 1.
    """
    nearest, distance = (None, torch.inf) if is_first else database.nearest(key)
    if nearest is None or distance > nearest.radius + radius:
        return ClusterPlacement(OPENED, 0, distance)
    if nearest.label == label:
        return ClusterPlacement(JOINED, nearest.id, distance)
    return ClusterPlacement(REPLACED if distance <= noise else IN_CONFLICT, nearest.id, distance)
