//! Pod lifecycle: one worker a pod UID.
