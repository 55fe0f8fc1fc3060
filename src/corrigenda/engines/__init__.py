"""Engines that several methods or an analysis share."""
