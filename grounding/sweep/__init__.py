"""Ablation tables: plan, runs, statistics, Markdown, figures."""
