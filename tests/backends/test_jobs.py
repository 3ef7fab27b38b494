"""Jobs over HTTP, the openai package driving them, on PostgreSQL and S3."""

import pytest

from tests.end_to_end.test_jobs import *  # noqa: F403
from tests.end_to_end.test_jobs import client, films, receiver, sdk  # noqa: F401
from tests.servers import running_server
from tests.webhooks import SECRET


@pytest.fixture(scope="module")
def server(tmp_path_factory, decoder_folder, receiver, postgres, s3):  # noqa: F811
    settings = {
        "database_url": postgres.new_database(),
        "blob_url": f"s3://{s3}/jobs",
        "webhook_url": receiver.url,
        "webhook_secret": SECRET,
    }
    home = tmp_path_factory.mktemp("jobs-home")
    with running_server(home, str(decoder_folder), dtype="float32", **settings) as running:
        yield running
