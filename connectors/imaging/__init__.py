"""The imaging pipeline's ways in: DICOMweb, form upload, and folders of files."""
