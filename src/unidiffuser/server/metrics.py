"""What Prometheus is told."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The numbers of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("unidiffuser_requests", "HTTP requests by status", ["method", "status"], registry=r)
        self.admitted = Counter("unidiffuser_jobs_admitted", "Jobs taken on", ["verb"], registry=r)
        self.refused = Counter("unidiffuser_jobs_refused", "Requests turned away", ["why"], registry=r)
        self.ended = Counter("unidiffuser_jobs_ended", "Jobs that are over", ["verb", "state"], registry=r)
        self.seconds = Histogram(
            "unidiffuser_job_seconds", "From request to end", ["verb"], buckets=SECONDS, registry=r
        )
        self.waiting = Gauge("unidiffuser_queue_jobs", "Jobs that wait", registry=r)
        self.waiting_cost = Gauge("unidiffuser_queue_rows", "Rows of the network that wait", registry=r)
        self.running = Gauge("unidiffuser_running_jobs", "Jobs that run", registry=r)
        self.restarts = Counter("unidiffuser_worker_restarts", "Workers that were started again", registry=r)
        self.previews = Counter("unidiffuser_previews", "Previews sent by workers", registry=r)
        self.rows = Histogram("unidiffuser_forward_rows", "Rows of a forward", buckets=ROWS, registry=r)
        self.calls = Histogram("unidiffuser_forward_jobs", "Samplings that share a forward", buckets=ROWS, registry=r)

    def forward(self, rows: int, calls: int) -> None:
        """Note one forward of a worker."""
        self.rows.observe(rows)
        self.calls.observe(calls)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
