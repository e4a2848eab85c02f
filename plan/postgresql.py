"""PostgreSQL's memory and planner settings from the machine's size."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PostgresqlSizes:
    """Settings that follow from the machine; memory in MiB unless the name says KiB."""

    shared_buffers_mib: int
    effective_cache_size_mib: int
    maintenance_work_mem_mib: int
    work_mem_kib: int
    max_wal_size_mib: int


def sizes_for(memory_mib: int, max_connections: int) -> PostgresqlSizes:
    """Size PostgreSQL for a machine that also runs a frontend and the edge.

    A quarter of memory for shared_buffers and half for effective_cache_size: PostgreSQL's manual,
    section 19.4.1 Memory (25 % as a starting point) and 19.7.2 (the planner's idea of the cache).
    work_mem is what a quarter of memory leaves to every allowed connection at once, halved for
    queries with several sorts, never below the manual's default of 4 MiB divided by two.

    Parameters:
        memory_mib: the machine's memory in MiB.
        max_connections: the database's limit of connections.
    """
    shared = max(128, memory_mib // 4)
    return PostgresqlSizes(
        shared_buffers_mib=shared,
        effective_cache_size_mib=max(256, memory_mib // 2),
        maintenance_work_mem_mib=min(2048, max(32, memory_mib // 16)),
        work_mem_kib=min(65536, max(2048, memory_mib * 1024 // 4 // max_connections // 2)),
        max_wal_size_mib=min(16384, max(1024, memory_mib)),
    )
