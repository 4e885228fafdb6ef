"""Prices: the live path against a local catalogue in gpuhunt's own format, and the snapshot."""

import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gpuhunt.providers.vastai
import pandas as pd
import pytest
from benchmarks.prices import refresh

from helpers.choose import prices
from helpers.errors import CourseError

HEAD = (
    "instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot,disk_size,"
    "gpu_vendor,flags,cpu_arch,provider_data\n"
)
ROWS = {
    "aws": [
        "g6.xlarge,us-east-1,0.90,4,16,1,L4,24,False,,nvidia,,x86,{}",
        "g6.xlarge,us-east-2,0.80,4,16,1,L4,24,False,,nvidia,,x86,{}",
        "g6.xlarge,us-east-2,0.30,4,16,1,L4,24,True,,nvidia,,x86,{}",
        "g6f.large,us-east-1,0.20,2,8,1,L4,3,False,,nvidia,,x86,{}",
        "p5.48xlarge,us-east-1,55.0,192,2048,8,H100,80,False,,nvidia,,x86,{}",
        "c7i.large,us-east-1,0.09,2,4,0,,,False,,,,x86,{}",
    ],
    "runpod": [
        "NVIDIA A100 80GB PCIe,EU,1.64,8,100,1,A100,80,False,,nvidia,,x86,{}",
        "NVIDIA A100-SXM4-80GB,EU,1.89,8,100,1,A100,80,False,,nvidia,,x86,{}",
        "NVIDIA A100-SXM4-80GB,EU,0.10,8,100,8,A100,80,False,,nvidia,runpod-cluster,x86,{}",
    ],
}
# The fields of an offer that gpuhunt reads, from the example in Vast's published description.
VAST_OFFER = {
    "id": 384827, "num_gpus": 1, "gpu_name": "RTX 4090", "gpu_ram": 24564, "dph_base": 0.30,
    "storage_cost": 0.15, "disk_space": 900.0, "cpu_cores": 64, "cpu_cores_effective": 16.0,
    "cpu_ram": 128000, "geolocation": "Sweden, SE", "min_bid": 0.15, "dph_total": 0.31,
}  # fmt: skip


@pytest.fixture
def catalogue(monkeypatch):
    """A loopback server that publishes a catalogue as gpuhunt's bucket does, and Vast's search."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            provider, _, rest = self.path.removeprefix("/v3/").partition("/")
            if provider not in ROWS:
                return self.send_error(404)
            if rest == "version":
                return self.answer(b"20261101-2117\n")
            data = io.BytesIO()
            with zipfile.ZipFile(data, "w") as archive:
                archive.writestr(f"{provider}.csv", HEAD + "\n".join(ROWS[provider]) + "\n")
            return self.answer(data.getvalue())

        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(json.dumps({"offers": [VAST_OFFER]}).encode())

        def answer(self, body):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", f"{url}/v3")
    monkeypatch.setattr(gpuhunt.providers.vastai, "bundles_url", f"{url}/api/v0/bundles/")
    yield asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def offline(monkeypatch):
    """A machine whose network refuses every connection."""
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", nowhere)
    monkeypatch.setattr(gpuhunt.providers.vastai, "bundles_url", nowhere)


def test_live_prices_come_from_the_catalogue_and_the_rest_from_the_snapshot(catalogue, capfd):
    """A provider that answers is live, one that does not is marked as old; nothing else leaks."""
    table = prices.offers()
    live = table[table.source.str.startswith("live: ")]
    assert set(live.provider) == {"aws", "runpod", "vast.ai"}
    assert set(table.provider) == {"aws", "azure", "runpod", "vast.ai"}
    assert (live[live.provider == "aws"].seen == "2026-11-01").all()
    told = prices.freshness(table).splitlines()
    assert [line.split(":")[0] for line in told] == ["aws", "azure", "runpod", "vast.ai"]
    assert "OLD" in told[1] and "2026-06-18" in told[1]
    assert "live" in told[0] and "live" in told[2] and "live" in told[3]
    assert capfd.readouterr() == ("", ""), "gpuhunt's tracebacks must not reach the notebook"


def test_gpuhunt_traps(catalogue):
    """Regions, fractions, clusters, variants of one name, Vast's disk and its limit."""
    table = prices.offers()
    live = table[table.source.str.startswith("live: ")].set_index(["instance_type", "kind"])
    assert live.index.is_unique
    cheapest = live.loc[("g6.xlarge", "on-demand")]
    assert (cheapest.usd_per_hour, cheapest.region) == (0.80, "us-east-2")
    assert live.loc[("g6.xlarge", "interruptible")].usd_per_hour == 0.30
    assert "g6f.large" not in live.index.get_level_values(0)
    assert live.loc[("p5.48xlarge", "on-demand")].gpu == "H100 SXM"
    assert live.loc[("p5.48xlarge", "on-demand")].usd_per_gpu_hour == pytest.approx(55 / 8)
    assert live.loc[("NVIDIA A100 80GB PCIe", "on-demand")].gpu == "A100 80GB PCIe"
    sxm = live.loc[("NVIDIA A100-SXM4-80GB", "on-demand")]
    assert (sxm.gpu, sxm.usd_per_hour, sxm.bandwidth_gb_s) == ("A100 80GB SXM", 1.89, 2039)
    vast = live.loc[("384827", "on-demand")]
    assert vast.usd_per_hour == pytest.approx(0.30 + 60 * 0.15 / 720, abs=1e-4)
    assert (vast.gpu, vast.vram_gb) == ("RTX 4090", 24)
    assert live.loc[("384827", "interruptible")].usd_per_hour < vast.usd_per_hour
    assert table.usd_per_hour.is_monotonic_increasing
    assert catalogue[0]["limit"] == 3000 and catalogue[0]["verified"] == {"eq": True}


def test_offline_is_told_and_still_works(offline):
    """Without a network the snapshot answers, and every provider is said to be old."""
    table = prices.offers()
    pd.testing.assert_frame_equal(table, prices.offers(live=False))
    lines = prices.freshness(table).splitlines()
    assert len(lines) == 4 and all("OLD" in line for line in lines)
    assert "undated" in lines[2] and "2025 or later" in lines[2]


def test_refresh_writes_a_snapshot_that_reads_back(catalogue, tmp_path, monkeypatch):
    """What refresh writes is what the next offline reader sees, with its date and source."""
    path = tmp_path / "prices.csv"
    path.write_text(prices.SNAPSHOT.read_text())
    monkeypatch.setattr(prices, "SNAPSHOT", path)
    written = refresh()
    again = prices.offers(live=False)
    assert len(again) == len(written)
    aws = again[again.provider == "aws"]
    assert set(aws.seen) == {"2026-11-01"} and set(aws.source) == {"gpuhunt aws 20261101-2117"}
    assert set(again[again.provider == "azure"].seen) == {"2026-06-18"}
    assert "aws: OLD, 3 offers from the snapshot, 2026-11-01" in prices.freshness(again)


def test_refresh_offline_leaves_the_snapshot_alone(offline, tmp_path, monkeypatch):
    """A failed refresh must not replace facts by nothing."""
    path, before = tmp_path / "prices.csv", prices.SNAPSHOT.read_text()
    path.write_text(before)
    monkeypatch.setattr(prices, "SNAPSHOT", path)
    with pytest.raises(CourseError, match="snapshot was not changed"):
        refresh()
    assert path.read_text() == before


def test_every_snapshot_row_has_a_source_and_a_date_or_says_why_not():
    """A price without a date and a source is a rumour."""
    table = prices.offers(live=False)
    assert table.source.str.len().min() > 10
    assert table[table.seen == ""].note.str.contains("no date").all()
    assert table.usd_per_hour.between(0.05, 200).all() and table.vram_gb.ge(15).all()
    assert table.gpu_count.ge(1).all()


def test_comparison_is_computed_from_the_offers():
    """The table of notebook 00: its prices are those of the offers, its facts have a source."""
    table = prices.offers(live=False)
    side_by_side = prices.by_cloud(table)
    assert list(side_by_side.columns) == ["vast.ai", "runpod", "aws", "azure"]
    aws = table[(table.provider == "aws") & (table.gpu == "A100 80GB SXM")].usd_per_gpu_hour.min()
    assert side_by_side.loc["a100_80gb", "aws"] == f"${aws:.2f}/h"
    assert side_by_side.notna().all().all()
