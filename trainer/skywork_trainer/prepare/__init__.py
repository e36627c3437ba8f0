"""What a document must be like to be trained on: filters, decontamination and near-duplicates of raw text."""
