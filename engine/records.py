"""The former name of `engine.run_directory`."""

from engine.run_directory import DONE, FAILED, KILLED, RUNNING, STOPPED, RunDirectory, RunLocked, same_data

RunFolder = RunDirectory

__all__ = ["DONE", "FAILED", "KILLED", "RUNNING", "STOPPED", "RunFolder", "RunLocked", "same_data"]
