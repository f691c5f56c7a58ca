#!/bin/sh
# MLflow's server of a team. Where PostgreSQL and S3 are, and their passwords, is in the variables that libpq (PGHOST,
# PGUSER, PGPASSWORD) and boto3 (AWS_…, MLFLOW_S3_ENDPOINT_URL) read: no command line and no file has them.
here=$(dirname "$0")
export MLFLOW_AUTH_CONFIG_PATH="$here/auth.ini"
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
exec python -m mlflow server --app-name=basic-auth \
    --backend-store-uri=postgresql+psycopg:///mlflow --artifacts-destination=s3://vae/mlflow "$@"
