"""Whoever is killed, connections to the database among them: on PostgreSQL and S3, each job ends once, rightly."""

import psycopg
import pytest

from tests.faults import VICTIMS, survive
from tests.servers import running_server


@pytest.mark.timeout(3600)
def test_whoever_is_killed_each_job_ends_once(tmp_path, decoder_folder, postgres, s3):
    home, url = tmp_path / "home", postgres.new_database()

    def serve():
        settings = {"database_url": url, "blob_url": f"s3://{s3}/{tmp_path.name}"}
        return running_server(home, str(decoder_folder), dtype="float32", **settings)

    def end_connections(server, job):
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                [url.rpartition("/")[2]],
            )

    survive(serve, home, tmp_path, {**VICTIMS, "connections": end_connections})
