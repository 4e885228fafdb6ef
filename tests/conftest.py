"""One rehearsal for the whole run, in a temporary home; nothing touches the reader's own."""

import datetime
import ipaddress
import os
import shutil
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support import vllm_server

from helpers import rehearsal, rent
from helpers import settings as settings_module
from helpers.rent import guard, ssh
from helpers.rent.market import OfferFilter
from helpers.serve import ServingSpec

# Run by hand, with packages of their own. To look for examples in docstrings would import them.
collect_ignore = ["benchmarks"]


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """Point every setting at a temporary folder, for this process and all it starts."""
    folder = tmp_path_factory.mktemp("home")
    mine = {
        "HOME": folder,
        "SSH_KEY": folder / ".ssh" / "id_llm_course",
        "RUNS_DIR": folder / "runs",
        "REHEARSAL_HOME": folder / "rehearsal",
        "MODEL_CACHE": os.environ.get("MODEL_CACHE", folder / "cache"),
        "MPLBACKEND": "agg",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PROVIDER", "VAST_API_KEY", "RUNPOD_API_KEY", "HF_TOKEN", "SSH_PASSPHRASE"):
            patch.delenv(name, raising=False)
        patch.delenv("LOCAL_MODEL", raising=False)
        patch.delenv("ENGINE", raising=False)
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        patch.setitem(settings_module.Settings.model_config, "env_file", None)
        for name, value in mine.items():
            patch.setenv(name, str(value))
        yield folder
        rehearsal.stop(settings_module.read())


@pytest.fixture(scope="session")
def settings(home):
    """The settings of the shared rehearsal."""
    return settings_module.read()


@pytest.fixture(scope="session")
def provider(settings):
    """The shared rehearsal."""
    return rent.connect(settings)


@pytest.fixture(scope="session")
def instance(provider, settings):
    """A rented instance that serves the rehearsal's model."""
    rented = guard.rent(provider, ServingSpec(), "tests", settings, progress=print)
    yield rented
    guard.destroy(provider, rented.id)


@pytest.fixture(scope="session")
def endpoint(instance, settings):
    """The model's API, through the tunnel."""
    with ssh.tunnel(instance, settings) as tunnel:
        yield tunnel.endpoint(poll_s=0.3)


@pytest.fixture(scope="session")
def vllm(tmp_path_factory):
    """Real vLLM on the CPU, one server for all tests that take it as it is."""
    arguments = ("--max-num-seqs", "32", vllm_server.DETAILS)
    folder = tmp_path_factory.mktemp("vllm")
    with vllm_server.serve(folder, *arguments, api_key="a-test-key") as server:
        yield server


@pytest.fixture
def own_rehearsal(settings, tmp_path, monkeypatch):
    """Settings of a rehearsal of the test's own, stopped afterwards."""
    mine = settings.model_copy(update={"rehearsal_home": tmp_path / "rehearsal"})
    monkeypatch.setenv("REHEARSAL_HOME", str(mine.rehearsal_home))
    yield mine
    rehearsal.stop(mine)


@pytest.fixture
def stock_ssh():
    """The path of OpenSSH's ``ssh``."""
    program = shutil.which("ssh")
    if not program:
        pytest.skip("OpenSSH's ssh is not installed")
    return program


@pytest.fixture
def small_offer(provider):
    """The cheapest offer of the shared rehearsal."""
    return provider.offers(OfferFilter())[0]


@pytest.fixture
def tls(tmp_path, monkeypatch):
    """A context for a server, 127.0.0.1 or model.example, that a client of this process trusts."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("model.example")]
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(secret + made.public_bytes(pem))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    return context
