"""All faults, in the order of the table."""

from benchmarks.faults.clusters import CLUSTERS
from benchmarks.faults.kills import KILLS
from benchmarks.faults.outside import OUTSIDE
from benchmarks.faults.processes import PROCESSES
from benchmarks.faults.records import RECORDS
from benchmarks.faults.storages import STORAGES

CASES = [*KILLS, *PROCESSES, *RECORDS, *OUTSIDE, *CLUSTERS, *STORAGES]
