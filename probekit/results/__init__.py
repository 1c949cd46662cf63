"""Result tables: one schema, provenance, attachments, comparisons."""
