"""The components that come with sftrun: ordinary plugins, one file each."""
