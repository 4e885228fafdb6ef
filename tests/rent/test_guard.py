"""Guard: no surprise bill."""

import dataclasses
import threading
import time
from types import SimpleNamespace

import pytest
from support.machines import Idle

from helpers import rent as providers
from helpers.errors import CourseError
from helpers.rent import guard, ssh
from helpers.rent.ledger import Ledger
from helpers.rent.market import OfferFilter
from helpers.serve.spec import ServingSpec


def test_renting_again_finds_the_running_instance(provider, instance, settings):
    """A second run of a notebook adopts the machine of the first."""
    again = guard.rent(provider, ServingSpec(), "tests", settings, progress=print)
    assert again.id == instance.id


def test_two_notebooks_at_once_rent_one_machine(provider, settings):
    """The look-up and the rental are one step."""
    found = []

    def notebook():
        found.append(guard.rent(provider, ServingSpec(), "twins", settings, progress=print).id)

    threads = [threading.Thread(target=notebook) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    guard.destroy(provider, found[0])
    assert len(found) == 2
    assert len(set(found)) == 1


def test_price_over_the_ceiling_is_refused_with_the_figures(provider, settings):
    """Nothing dearer than MAX_USD_PER_HOUR is rented."""
    poor = settings.model_copy(update={"max_usd_per_hour": 0.05})
    before = provider.instances()
    with pytest.raises(CourseError, match=r"costs \$0\.\d\d/h, your ceiling is \$0\.05/h"):
        guard.rent(provider, ServingSpec(), "dear", poor, progress=print)
    assert provider.instances() == before


def test_credit_under_one_hour_is_refused(small_offer, settings):
    """An hour that the balance does not pay is not begun."""
    with pytest.raises(CourseError, match="do not pay one hour"):
        guard.check(small_offer, settings, balance_usd=0.01)


def test_budget_counts_what_was_spent_and_the_whole_lifetime(provider, small_offer, settings):
    """Hours times price, on top of what earlier rentals cost, must fit the budget."""
    tight = settings.model_copy(update={"budget_usd": small_offer.usd_per_hour * 5})
    guard.check(small_offer, tight, balance_usd=100, spent_usd=0)
    with pytest.raises(CourseError, match=r"more than your budget of \$"):
        guard.check(small_offer, tight, balance_usd=100, spent_usd=small_offer.usd_per_hour * 2)


def test_ledger_outlives_the_kernel_and_closes_what_is_gone(own_rehearsal):
    """A rental that ended without us is counted until it was missed, and no longer."""
    provider = providers.connect(own_rehearsal)
    machine = guard.rent(provider, ServingSpec(), "ledger", own_rehearsal, progress=print)
    provider.destroy(machine.id)  # behind the guard's back
    ledger = Ledger(own_rehearsal, provider.name)
    assert ledger.read()[machine.label]["ended"] is None and ledger.open()
    ledger.compare([])
    assert not ledger.open()
    spent = ledger.spent_usd()
    assert 0 < spent < 0.01
    assert Ledger(own_rehearsal, provider.name).spent_usd() == spent


def test_real_money_is_asked_for(small_offer, settings, monkeypatch):
    """The question holds price, total and credit; only yes rents; nobody there means no."""
    asked = []
    for answer, rents in (("yes", True), ("Y", True), ("no", False), ("", False)):
        monkeypatch.setattr("builtins.input", lambda text, a=answer: asked.append(text) or a)
        if rents:
            guard.confirm(small_offer, settings, 12.5)
        else:
            with pytest.raises(CourseError, match="not confirmed"):
                guard.confirm(small_offer, settings, 12.5)
    total = small_offer.usd_per_hour * settings.lifetime_hours
    for words in (f"${small_offer.usd_per_hour:.3f}/h", f"${total:.2f} in all", "$12.50"):
        assert words in asked[0]
    monkeypatch.undo()
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(CourseError, match="not confirmed"):
        guard.confirm(small_offer, settings, 12.5)


@pytest.mark.parametrize("confirm", [True, False])
def test_a_real_provider_is_confirmed_unless_told_not_to(provider, settings, monkeypatch, confirm):
    """CONFIRM=no rents without a question; otherwise a no leaves nothing rented."""
    monkeypatch.setattr(provider, "rehearsal", False)
    monkeypatch.setattr("builtins.input", lambda text: "no")
    mine = settings.model_copy(update={"confirm": confirm})
    if confirm:
        with pytest.raises(CourseError, match="not confirmed"):
            guard.rent(provider, ServingSpec(), "asked", mine, progress=print)
        assert guard.find(provider, "asked") is None
    else:
        machine = guard.rent(provider, ServingSpec(), "asked", mine, progress=print)
        guard.destroy(provider, machine.id)


def test_a_template_is_rented_from(provider, settings):
    """Its own script runs there, whatever the spec says."""
    number = provider.create_template(ServingSpec(max_model_len=512), "guarded")
    options = {"template_id": number, "progress": print}
    with guard.rented(provider, ServingSpec(), "templated", settings, **options) as machine:
        assert "--max-model-len 512 " in ssh.run(machine, settings, "cat onstart.sh")


def test_no_match_says_what_to_do(provider, settings):
    """An impossible filter ends in a sentence, not in an empty list."""
    with pytest.raises(CourseError, match="no offer matches"):
        guard.rent(provider, ServingSpec(), "none", settings, OfferFilter(min_vram_gb=999))


def test_taken_offers_are_skipped(provider, settings, monkeypatch):
    """When the cheapest is gone between search and launch, the next one is rented."""
    offers = provider.offers(OfferFilter())
    ghost = dataclasses.replace(offers[0], id="4242")
    monkeypatch.setattr(provider, "offers", lambda wanted: [ghost, *offers], raising=False)
    machine = guard.rent(provider, ServingSpec(), "next", settings, progress=print)
    try:
        assert machine.gpu == offers[0].gpu
    finally:
        guard.destroy(provider, machine.id)


def test_rented_destroys_also_after_an_error(provider, settings):
    """Leaving the block ends the rental, whatever happened in it."""
    with (
        pytest.raises(ZeroDivisionError),
        guard.rented(provider, ServingSpec(), "block", settings, progress=print),
    ):
        assert guard.find(provider, "block") is not None
        raise ZeroDivisionError
    assert guard.find(provider, "block") is None


def test_failed_instance_is_replaced(provider, settings):
    """A machine whose host died is destroyed and another one rented."""
    import signal

    from support.waiting import eventually, ours

    machine = guard.rent(provider, ServingSpec(), "replace", settings, progress=print)
    for process in ours(settings.rehearsal_home):
        if process.cmdline()[-1].endswith(f"/{machine.id}"):
            process.send_signal(signal.SIGKILL)
    assert eventually(lambda: provider.instance(machine.id).status == "failed")
    again = guard.rent(provider, ServingSpec(), "replace", settings, progress=print)
    assert again.id != machine.id
    assert provider.instance(machine.id) is None
    guard.destroy(provider, again.id)


def test_status_lists_price_running_and_stopped(provider, instance):
    """The table says what a machine costs now, and what it costs when only stopped."""
    table = guard.status(provider.instances()).set_index("id")
    row = table.loc[instance.id]
    assert 0 < row["stopped_usd_per_hour"] < row["usd_per_hour"]


def test_the_end_needs_only_a_label(provider, settings, capsys):
    """After a restart of the kernel there is no variable left, and the machine still costs."""
    tunnels = {}
    for label in ("end", "end-not"):
        machine = guard.rent(provider, Idle(), label, settings, progress=print)
        tunnels[label] = ssh.tunnel(machine, settings)
    guard.end(settings, "end")
    assert [guard.find(provider, label) is None for label in tunnels] == [True, False]
    assert [tunnel.process.poll() is None for tunnel in tunnels.values()] == [False, True]
    tunnels["end"].close()  # a second time is no error
    assert "(llm-course:end:" in capsys.readouterr().out
    guard.end(settings, "end-not")
    guard.end(settings, "end-not")
    assert guard.find(provider, "end-not") is None


def test_an_unusable_key_is_found_before_anything_is_searched(provider, settings, tmp_path):
    """Else a machine is paid that never lets us in."""
    key = tmp_path / "id"
    mine = settings.model_copy(update={"ssh_key": key})
    ssh.ensure_key(mine)
    key.write_text("PuTTY-User-Key-File-3: ssh-ed25519\n")
    with pytest.raises(CourseError, match="PuTTY"):
        guard.rent(SimpleNamespace(name="not to be asked"), ServingSpec(), "key", mine)


def test_extended_machine_lives_on(own_rehearsal):
    """extend() sets the deadline anew; more than the reader allows at once is refused."""
    provider = providers.connect(own_rehearsal)
    short = own_rehearsal.model_copy(update={"lifetime_hours": 6 / 3600})
    machine = guard.rent(provider, Idle(), "extend", short, progress=print)
    until = guard.extend(machine, own_rehearsal, 0.5)
    assert 0.45 < (until.timestamp() - machine.created) / 3600 < 0.55
    time.sleep(12)
    assert provider.instance(machine.id) is not None
    with pytest.raises(CourseError, match="you allow at once"):
        guard.extend(machine, own_rehearsal, 99)
