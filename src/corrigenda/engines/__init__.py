"""What two methods or an analysis share."""
