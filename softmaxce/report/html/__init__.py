"""The pages: a run's report, a comparison of runs, an explained image."""
