"""Row D20: whose data is it? Nothing reaches a server under an identity that it was not registered with."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ml_dash.disk.settings import resolve
from ml_dash.sync import login, registrations
from tests.faults.harness import Row, Trial

from .asking import Client, claims, jwt
from .pens import WriterFixture, make_place
from .servers import account, syncd
from .world import DRAINED, HASTE, Site, World, site, world

UNSENT: Final = 3


@dataclass
class _Host:
    """One host account: whose login is stored there, and what each journal was registered with."""

    here: Site
    url: str
    env: dict[str, str]
    users: list[str]
    stored: str | None = None
    # Is the development login signed with a secret that the server does not know? Then a name alone is no login.
    nameless: bool = False

    def log_in(self, user: str) -> None:
        """Store another login for the server, as `ml-dash login` does."""
        self.stored = user
        login.store(self.url, jwt(claims(user)), user, self.env)

    def registered(self, journal: Path, **identity: str) -> None:
        registrations.register(journal, resolve(remote=self.url, env=self.env, **identity), self.env)


Kind = Callable[[_Host, Path, random.Random], "str | None"]


def _by_token(host: _Host, journal: Path, rng: random.Random) -> str | None:
    user = rng.choice(host.users)
    host.registered(journal, api_key=jwt(claims(user)))
    return user


def _by_token_and_another_name(host: _Host, journal: Path, rng: random.Random) -> str | None:
    user, other = rng.sample(host.users, 2)
    host.registered(journal, api_key=jwt(claims(user)), user_name=other)
    return user


def _by_refused_token(host: _Host, journal: Path, rng: random.Random) -> str | None:
    user = rng.choice(host.users)
    token = rng.choice([jwt(claims(user, now=time.time() - 40 * 86_400)), f"mld_{rng.randbytes(16).hex()}"])
    name = {"user_name": rng.choice(host.users)} if rng.random() < 0.5 else {}
    host.registered(journal, api_key=token, **name)
    return None


def _by_name(host: _Host, journal: Path, rng: random.Random) -> str | None:
    user = rng.choice(host.users)
    host.registered(journal, user_name=user)
    return user


def _by_login(host: _Host, journal: Path, _: random.Random) -> str | None:
    host.registered(journal)
    # Whoever is logged in at that moment; nobody, if nobody is.
    return host.stored


def _by_version_0_1(host: _Host, journal: Path, _: random.Random) -> str | None:
    registrations.write(registrations.Registration(str(journal), host.url), host.env)
    return None


KINDS: Final[tuple[Kind, ...]] = (
    _by_token, _by_token_and_another_name, _by_refused_token, _by_name, _by_login, _by_version_0_1,
)  # fmt: skip


def nobody_elses_data(trial: Trial) -> None:
    """D20. Journals registered in every way while logins come and change: each is there for its own user alone."""
    shared: World = trial.shared
    with site(trial) as here:
        users = [f"{here.project}-{name}" for name in ("alice", "bob", "eve")]
        env = account(here.home)
        host = _Host(here, f"http://127.0.0.1:{shared.server.port}", env, users)
        owners: dict[bytes, str | None] = {}
        kinds = [*KINDS, *(trial.rng.choice(KINDS) for _ in range(2))]
        trial.rng.shuffle(kinds)
        host.nameless = trial.rng.random() < 0.5
        named: dict[bytes, str] = {}
        gone: dict[bytes, str | None] = {}
        for kind in kinds:
            if trial.rng.random() < 0.5:
                host.log_in(trial.rng.choice(users))
            pen = _recorded(here.pen())
            owner = kind(host, pen.place.journal, trial.rng)
            # Of a registration of version 0.1 that sent nothing, nothing tells which journal it was for.
            tells = kind is not _by_version_0_1 and not (kind in (_by_name, _by_login) and host.nameless)
            if tells and trial.rng.random() < 0.3:
                # Removed, sent or not, and recorded anew at the same path: nothing of that is the first one's.
                if trial.rng.random() < 0.5:
                    _send(trial, host, named, owners)
                gone[pen.place.identity] = owner
                shutil.rmtree(pen.place.home)
                place = make_place(here.store, here.project, pen.place.name)
                pen = _recorded(here.pen(place))
                if trial.rng.random() < 0.5:
                    host.log_in(trial.rng.choice(users))
                kind = trial.rng.choice([one for one in KINDS if one is not _by_version_0_1])
                owner = kind(host, pen.place.journal, trial.rng)
                trial.counts["recorded anew"] += 1
            if kind in (_by_name, _by_login) and host.nameless and owner is not None:
                named[pen.place.identity] = owner
                owner = None
            owners[pen.place.identity] = owner
            trial.counts[kind.__name__.strip("_").replace("_", " ")] += 1
            if trial.rng.random() < 0.5:
                # Continued by a program that names nobody, while somebody else is logged in: it stays whose it was.
                host.log_in(trial.rng.choice(users))
                registrations.register_again(pen.place.journal, resolve(remote=host.url, env=env), env)
                trial.counts["continued"] += 1
            if trial.rng.random() < 0.3:
                _send(trial, host, named, owners)
        host.log_in(trial.rng.choice(users))
        status = _send(trial, host, named, owners)
        expected = UNSENT if None in owners.values() else DRAINED
        trial.check(status == expected, f"`once` ended with {status}, expected {expected}")
        for user in users:
            with Client(shared.server.port, user=user) as client:
                for identity, owner in gone.items():
                    wrong = owner != user and client.journal(identity.hex()) is not None
                    trial.check(not wrong, f"a removed journal of {owner or 'nobody'} is in the namespace of {user}")
                for identity, owner in owners.items():
                    found = client.journal(identity.hex()) is not None
                    trial.check(
                        found == (owner == user),
                        f"journal of {owner or 'nobody'} is {'' if found else 'not '}in the namespace of {user}",
                    )


def _recorded(pen: WriterFixture) -> WriterFixture:
    """A whole run with one point."""
    pen.open()
    pen.point(value=1.0)
    pen.close()
    return pen


def _send(trial: Trial, host: _Host, named: dict[bytes, str], owners: dict[bytes, str | None]) -> int:
    """One `once`; what goes by a name whose login is stored at this moment has its owner from then on."""
    owners.update({identity: user for identity, user in named.items() if user == host.stored})
    env = {"ML_DASH_JWT_SECRET": "a secret that the server does not know"} if host.nameless else {}
    folder, home = host.here.folder, host.here.home
    victim = syncd(trial.shared.zygote, folder, "once", home=home, env=env, impatient=HASTE)
    return victim.wait(60.0)


ROWS = (Row("D20", "logins change, tokens are refused", 500, 5, nobody_elses_data, world),)
