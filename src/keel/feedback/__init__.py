"""Feedback from people: projects, tasks, judgements, on a database and behind a web app. Never imports torch."""
