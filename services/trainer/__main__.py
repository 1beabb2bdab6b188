"""`python -m services.trainer`: follows the active run and trains it; under torchrun, on all ranks together."""

from functools import partial

from services.trainer.follow import Follower
from services.trainer.serve_run import serve
from services.trainer.team import join_team
from shared.deployment import load_deployment
from shared.logs import configure
from shared.service import main

if __name__ == "__main__":
    team = join_team()
    if team.orders is not None and team.ranks.rank:
        deployment = load_deployment()
        log = configure(f"trainer-{team.ranks.rank}", deployment.log.level, deployment.log.format == "json")
        Follower(deployment, team.ranks, team.orders, log).follow()
    else:
        work = partial(serve, team=team)
        main("trainer", "trainer", lambda deployment: deployment.health.trainer_port, work, kinds=("rl", "sft", "dpo"))
        team.dismiss()
