"""KnowledgeEditor."""
